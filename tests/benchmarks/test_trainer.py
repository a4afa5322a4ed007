"""The Trainer's step beside the plain one, on a tiny model: they take turns on the same batches, and end with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockzo as bz
from benchmarks import trainer
from benchmarks.harness import Table
from tests.core import zoo


@pytest.mark.parametrize("name", trainer.METHODS)
def test_both_step_on_the_same_batches(name: str, tmp_path: Path) -> None:
    table = Table("trainer", tmp_path / "results.csv", machine="some CPU")
    trainer.measure(table, name, zoo.make("llama"), rows=2, tokens=6, rounds=2, folder=tmp_path, vocabulary=90)
    ratio, plain = table.rows
    assert float(ratio["p50"]) > 0 and ratio["rounds"] == plain["rounds"] == "2" and ratio["target"] == "<= 1.03"
    records = [bz.Journal.open(tmp_path / file).records() for file in ("plain.bz", "journal.bz")]
    assert records[0] and [r.losses for r in records[0]] == [r.losses for r in records[1]]
