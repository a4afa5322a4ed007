"""The README, docs/results.md and docs/paper-shapes.md tell the truth: their tables are those of the results file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", [table.PAGE, table.README, table.PAPER], ids=lambda file: file.name)
def test_the_tables_are_drawn_from_the_results(file: Path) -> None:
    made = table.drawn()[file]
    text = file.read_text(encoding="utf-8")
    assert text.count(table.BEGIN) == 1 and table.END in text
    assert table.placed(text, made) == text, "run: python benchmarks/table.py --write"
    assert "not measured yet" not in text


def test_letters_are_of_machines_that_are_shown() -> None:
    *rows, _, legend = table.markdown().splitlines()[2:]
    told = re.findall(r"\b([A-Z]): ", legend.partition(". Dates")[0])
    assert told == sorted({row.split("|")[-2].strip() for row in rows}) == list("ABCDEFGH"[: len(told)])


def test_the_readme_has_six_figures_with_their_commands() -> None:
    rows = table.headlines().splitlines()[2:]
    assert len(rows) == 6
    assert all("`python benchmarks/" in row.split("|")[-2] for row in rows)


def test_the_accuracies_of_the_main_job_are_those_of_the_results() -> None:
    text = table.PAGE.read_text(encoding="utf-8")
    rows = [row for row in table.read(table.RESULTS) if row["benchmark"] == "main job"]
    shown = [r for r in rows if r["metric"].split()[0] in ("accuracy", "calibrated_accuracy", "loss")]
    assert len(shown) == 3 * 6
    for row in shown:
        assert f"{float(row['p50']):.3f}" in text, (row["case"], row["metric"])
