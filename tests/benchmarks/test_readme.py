"""The README tells the truth: its table is that of the results file, and its Python runs."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

import blockzo as bz
from benchmarks import table
from tests.core import zoo

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_table_is_drawn_from_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert table.BEGIN in text and table.END in text
    assert table.placed(text) == text, "run: python benchmarks/table.py --write"
    assert "not measured yet" not in text


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    model, batch = zoo.make("llama"), zoo.batch()
    names = {"model": model, "base_model": copy.deepcopy(model), "batches": [batch, batch], "batch": batch}
    exec(blocks[0], names)
    assert bz.digest(names["base_model"]) == bz.digest(model)
    eps, lr, slope = 1e-3, 1e-2, 0.5
    before = copy.deepcopy(model)
    with torch.no_grad():
        exec(blocks[1], {"bz": bz, "model": model, "batch": batch, "seed": 3, "eps": eps, "lr": lr, "slope": slope})
    bz.update_(before, bz.Noise(3), [lr * slope])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before.get_parameter(name), rtol=0, atol=1e-6)


def test_both_commands_are_there_and_executable() -> None:
    for command in ("scripts/demo.sh", "scripts/test.sh"):
        assert command in README.read_text(encoding="utf-8")
        assert (README.parent / command).stat().st_mode & 0o100


def test_the_accuracies_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    rows = [row for row in table.read(table.RESULTS) if row["benchmark"] == "main job"]
    shown = [r for r in rows if r["metric"].split()[0] in ("accuracy", "calibrated_accuracy", "auc")]
    assert len(shown) == 4 * 6
    for row in shown:
        assert f"{float(row['p50']):.3f}" in text, (row["case"], row["metric"])
