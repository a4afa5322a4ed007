"""The table that chooses a GPU's path for the perturbed layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockzo.ops import linear_choice


def test_the_table_of_the_package_serves_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKZO_LINEAR_CHOICE", raising=False)
    assert linear_choice.most_tokens("a GPU of tomorrow", "bfloat16", "gaussian") > 0
    assert linear_choice.most_tokens("a GPU of tomorrow", "float32", "gaussian") == 0


def test_a_measured_row_goes_before_the_common_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choice.json"
    path.write_text(linear_choice.FILE.read_text())
    row = {"measured": True, **dict.fromkeys(linear_choice.KEYS, 16), "float16 gaussian": 512}
    linear_choice.write(path, "NVIDIA H100", row)
    monkeypatch.setenv("BLOCKZO_LINEAR_CHOICE", str(path))
    assert linear_choice.most_tokens("NVIDIA H100", "float16", "gaussian") == 512
    assert linear_choice.most_tokens("NVIDIA H100", "bfloat16", "rademacher") == 16
    assert linear_choice.most_tokens("another", "bfloat16", "rademacher") == 64


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"any": {}}', json.dumps({"any": dict.fromkeys(linear_choice.KEYS, -1)})]
)
def test_what_is_no_table_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choice.json"
    path.write_text(text)
    monkeypatch.setenv("BLOCKZO_LINEAR_CHOICE", str(path))
    with pytest.raises(ValueError, match="choice.json"):
        linear_choice.most_tokens("NVIDIA H100", "bfloat16", "rademacher")
