"""The harness: rounds in turns, ratios per round, rows that replace themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import COLUMNS, Spread, Table, paired, read, speedup


def test_sides_take_turns() -> None:
    calls: list[str] = []
    ticks = iter(range(1000))
    times = paired(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=3,
        warmup=1,
        clock=lambda: float(next(ticks)),
    )
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_the_speedup_is_the_median_of_ratios_of_rounds() -> None:
    # one round was disturbed on both sides: the ratio of the sums would be off
    times = {"new": [1.0, 50.0, 2.0], "old": [2.0, 100.0, 6.0]}
    assert speedup(times, "new", "old").p50 == 2.0


def test_spread() -> None:
    spread = Spread.of([float(k) for k in range(11)])
    assert (spread.p20, spread.p50, spread.p80, spread.rounds) == (2.0, 5.0, 8.0, 11)
    assert Spread.of([3.0]).p80 == 3.0
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_rows_replace_their_own_key_only(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    for value, case in ((1.0, "x"), (2.0, "y"), (3.0, "x")):
        table = Table("speed", path, machine="some CPU, 2 cores")
        table.add(case, "ratio", Spread.of([value]), "x", target=0.5)
        table.save()
    other = Table("speed", path, machine="another CPU")
    other.add("x", "ratio", Spread.of([9.0]), "x")
    other.save()
    rows = read(path)
    assert {(r["machine"], r["case"], r["p50"]) for r in rows} == {
        ("another CPU", "x", "9"),
        ("some CPU, 2 cores", "x", "3"),
        ("some CPU, 2 cores", "y", "2"),
    }
    assert len(rows) == 3
    assert all(tuple(row) == COLUMNS for row in rows)
    assert not list(tmp_path.glob("*.partial"))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("benchmark,case\na,b\n")
    with pytest.raises(ValueError, match="results.csv line 2"):
        read(path)


def test_generations_under_one_name_are_told_apart() -> None:
    zen4 = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 9\n"
    assert harness.cpu_of(zen4) == "AMD EPYC (family 25, model 17)"
    assert harness.cpu_of(zen4.replace("25", "26")) == "AMD EPYC (family 26, model 17)"
    assert harness.cpu_of("model name : some CPU\n") == "some CPU"
    assert harness.cpu_of("Processor: ARM\n") == ""
