"""The table that chooses a GPU's path for the perturbed layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockzo.ops.backends.gpu import linear_choice


def test_the_table_of_the_package_serves_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKZO_LINEAR_CHOICE", raising=False)
    assert linear_choice.choose("a GPU of tomorrow", "bfloat16", "gaussian", 16) == "products"
    assert linear_choice.choose("a GPU of tomorrow", "bfloat16", "gaussian", 4096) == "panels"
    assert linear_choice.choose("a GPU of tomorrow", "float32", "gaussian", 1) == "panels"


def test_a_measured_row_goes_before_the_common_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choice.json"
    path.write_text(linear_choice.FILE.read_text())
    row = {"measured": True, **dict.fromkeys(linear_choice.KEYS, 16), "float16 gaussian": 512}
    linear_choice.write(path, "NVIDIA H100", row)
    monkeypatch.setenv("BLOCKZO_LINEAR_CHOICE", str(path))
    found = [linear_choice.choose("NVIDIA H100", "float16", "gaussian", tokens) for tokens in (512, 513)]
    assert found == ["products", "panels"]
    found = [linear_choice.choose("NVIDIA H100", "bfloat16", "rademacher", tokens) for tokens in (1, 16, 17)]
    assert found == ["products", "products", "panels"]
    assert linear_choice.choose("another", "bfloat16", "rademacher", 64) == "products"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"any": {}}',
        json.dumps({"any": dict.fromkeys(linear_choice.KEYS, -1)}),
        json.dumps({"any": {**dict.fromkeys(linear_choice.KEYS, 1), "float16 gaussian": "all"}}),
    ],
)
def test_what_is_no_table_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choice.json"
    path.write_text(text)
    monkeypatch.setenv("BLOCKZO_LINEAR_CHOICE", str(path))
    with pytest.raises(ValueError, match="choice.json"):
        linear_choice.choose("NVIDIA H100", "bfloat16", "rademacher", 1)
