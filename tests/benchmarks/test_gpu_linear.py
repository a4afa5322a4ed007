"""The GPU's measurements of the linear layer, run small on the CPU by interpreted kernels: a GPU's time is not for typos."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_linear
from benchmarks.harness import Table
from blockzo.ops.backends import choice
from blockzo.ops.backends.gpu import kernels, linear_choice

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_linear, "SIZE", 128)
    monkeypatch.setattr(gpu_linear, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")


def test_all_sides_of_products_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def once(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        shapes = {name: [tuple(part.shape) for part in side()] for name, side in sides.items()}  # type: ignore[attr-defined]
        assert len(set(map(str, shapes.values()))) == 1
        return {name: [1.0] for name in sides}

    # the interpreter has no bfloat16 products
    normal = gpu_linear.normal
    monkeypatch.setattr(gpu_linear, "normal", lambda *shape, seed, **_: normal(*shape, seed=seed, dtype=torch.float16))
    monkeypatch.setattr(gpu_linear, "timed", once)
    monkeypatch.setattr(choice, "for_tensor", lambda tensor: kernels)
    table = Table("gpu", tmp_path / "results.csv")
    gpu_linear.products(table, 1)
    assert len({(row["case"], row["metric"]) for row in table.rows}) == len(table.rows) == 33


def test_choice_takes_what_was_fastest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two products are the faster way up to 32 tokens."""

    def given(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        tokens = sides["panels"].func.__defaults__[0].shape[1]  # type: ignore[attr-defined]
        return {"products": [tokens / 32 * 2.0], "panels": [3.0]}

    monkeypatch.setattr(gpu_linear, "timed", given)
    path = tmp_path / "choice.json"
    path.write_text(linear_choice.FILE.read_text())
    gpu_linear.choice(Table("gpu", tmp_path / "results.csv"), 1, path)
    row = json.loads(path.read_text())["a GPU"]
    assert {row[key] for key in linear_choice.KEYS} == {32}
