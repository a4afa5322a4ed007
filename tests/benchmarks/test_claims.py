"""The claims suite: every headline has its claim, rows are judged as they should be, and a stop loses nothing that was over."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, table
from benchmarks.claims import __main__ as command
from benchmarks.claims import plot, suite, told
from benchmarks.claims.claim import Claim
from benchmarks.claims.judge import ORDER, OUTSIDE, REPRODUCED, TOLD, judge
from benchmarks.claims.listed import CLAIMS, named
from benchmarks.harness import Spread, Table

HERE, ELSEWHERE = "a CPU, 2 cores", "another CPU, 2 cores"
CLAIM = Claim("speed", "It is fast.", ("case",), ("speed.py",), 1, within=0.1, fixed={"bytes": 0.0}, by_goal=("lead",))


def rows(*made: tuple[str, Sequence[float], str, float | None], machine: str = HERE) -> list[dict[str, str]]:
    found = Table("any", machine=machine)
    for metric, values, unit, target in made:
        found.add("case", metric, Spread.of(values), unit, target=target)
    return found.rows


def verdict(measured: dict[str, str], committed: list[dict[str, str]]) -> str:
    return judge(measured, committed, CLAIM).verdict


# the list


def test_every_headline_has_its_claim() -> None:
    assert sorted(one.headline for one in CLAIMS if one.headline is not None) == list(range(len(told.readme())))
    by_line = {one.headline: one for one in CLAIMS if one.headline is not None}
    assert [by_line[line].name for line in sorted(by_line)] == [one.name for one in CLAIMS[: len(by_line)]]
    assert all(one.quick is not None for one in by_line.values())
    for line, (what, _, keys) in enumerate(table.HEADLINES):
        for case, metric, _ in keys:
            assert by_line[line].holds({"case": case, "metric": metric}), (what, case, metric)


def test_every_figure_of_the_page_belongs_to_a_claim() -> None:
    for case, metric in table.SHOWN:
        assert any(one.holds({"case": case, "metric": metric}) for one in CLAIMS), (case, metric)


def test_the_commands_are_there() -> None:
    stated = {
        row["command"] for row in harness.read() for what in table.HEADLINES for key in what[2] if _key(row) == key
    }
    assert stated
    for words in [text for one in CLAIMS for text in one.commands] + [
        text.partition("benchmarks/")[2] for text in stated
    ]:
        script = command.FOLDER / words.split()[0]
        assert script.is_file() and "__main__" in script.read_text(encoding="utf-8"), words


def _key(row: dict[str, str]) -> tuple[str, str, str]:
    return row["case"], row["metric"], row["machine"]


def test_names_are_in_the_lists_order_and_unknown_ones_are_refused() -> None:
    assert [one.name for one in named(["planner", "bytes"])] == ["bytes", "planner"]
    with pytest.raises(ValueError, match="claim is 'speed'; expected of federated"):
        named(["speed"])


def test_quick_figures_have_a_committed_one() -> None:
    """Of some machine: what a quick run measures is compared with these rows."""
    quick = [row for row in harness.read() if row["benchmark"] == suite.BENCHMARK]
    for one in CLAIMS:
        if one.quick is not None:
            own = [row for row in quick if one.holds(row)]
            assert own, one.name
            # a name that is gone from the benchmark would never be compared
            assert all(
                any(metric == row["metric"] for row in quick) for metric in one.fixed if metric in _measured(own)
            ), one.name


def _measured(own: list[dict[str, str]]) -> set[str]:
    return {row["metric"] for row in own}


# one row against the record


def test_a_spread_of_this_machine() -> None:
    committed = rows(("ratio", [2.0, 2.1, 2.2], "x", None))
    assert verdict(rows(("ratio", [2.2, 2.5, 2.7], "x", None))[0], committed) == REPRODUCED
    assert verdict(rows(("ratio", [2.6, 2.7, 2.8], "x", None))[0], committed) == OUTSIDE
    assert verdict(rows(("ratio", [1.0, 1.5, 1.7], "x", None))[0], committed) == OUTSIDE
    # this machine's row counts, whatever others have
    far = rows(("ratio", [9.0], "x", None), machine=ELSEWHERE)
    found = judge(rows(("ratio", [2.0], "x", None))[0], [*far, *committed], CLAIM)
    assert found.verdict == REPRODUCED and "9 on another CPU" in found.why


def test_other_threads_are_another_machine() -> None:
    committed = rows(("ratio", [2.0], "x", None))
    measured = rows(("ratio", [20.0], "x", None))[0] | {"threads": "64"}
    assert verdict(measured, committed) == TOLD


def test_counts_are_the_same_everywhere() -> None:
    committed = rows(("bytes", [159], "B", None), machine=ELSEWHERE)
    assert verdict(rows(("bytes", [159], "B", None))[0], committed) == REPRODUCED
    assert verdict(rows(("bytes", [160], "B", None))[0], committed) == OUTSIDE


def test_without_a_row_of_this_machine_the_goal_decides() -> None:
    met = rows(("ratio", [60.0], "x", 50), machine=ELSEWHERE)
    missed = rows(("ratio", [40.0], "x", 50), machine=ELSEWHERE)
    assert verdict(rows(("ratio", [300.0], "x", 50))[0], met) == ORDER
    assert verdict(rows(("ratio", [30.0], "x", 50))[0], met) == OUTSIDE
    assert verdict(rows(("ratio", [30.0], "x", 50))[0], [*met, *missed]) == ORDER
    assert verdict(rows(("ratio", [30.0], "x", None))[0], rows(("ratio", [1.0], "x", None), machine=ELSEWHERE)) == TOLD


def test_seconds_are_told_and_leads_are_judged_by_their_goal() -> None:
    assert verdict(rows(("time", [9.0], "s", None))[0], rows(("time", [1.0], "s", None))) == TOLD
    assert verdict(rows(("lead", [0.1], "", 0))[0], []) == REPRODUCED
    assert verdict(rows(("lead", [-0.1], "", 0))[0], []) == OUTSIDE
    assert verdict(rows(("new", [1.0], "", 0))[0], []) == TOLD


# a run


def measures(*values: float) -> Any:
    def quick(found: Table) -> None:
        print("noise")
        found.add("case", "ratio", Spread.of(values), "x", target=50)

    return quick


def fails(found: Table) -> None:
    raise RuntimeError("no such model")


def stops(found: Table) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    # a handler runs between two instructions
    for _ in range(1000):
        pass


def suite_of(tmp_path: Path, *claims: Claim) -> suite.Suite:
    committed = rows(("ratio", [60.0], "x", 50), machine=ELSEWHERE)
    return suite.Suite(claims, True, tmp_path / "rows" / "own.csv", committed, lambda text: None)


def test_a_stop_keeps_what_was_over(tmp_path: Path) -> None:
    work = suite_of(tmp_path, replace(CLAIM, quick=measures(70.0)), replace(CLAIM, name="next", quick=stops))
    with pytest.raises(suite.Stopped) as end:
        work.run()
    assert [one.verdict for one in end.value.found] == [ORDER]
    (row,) = harness.read(tmp_path / "rows" / "own.csv")
    assert row["p50"] == "70" and row["benchmark"] == "claims" and "commit" in row["versions"]
    assert row["command"] == "blockzo bench --quick --only speed"


def test_a_failure_costs_no_other_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = suite_of(tmp_path, replace(CLAIM, quick=fails), replace(CLAIM, name="slow", quick=measures(30.0)))
    capsys.readouterr()
    found = work.run()
    assert [one.verdict for one in found] == [suite.FAILED, OUTSIDE] and suite.outside(found)
    assert not suite.outside(found[2:])
    assert capsys.readouterr().out == ""
    text = told.text(found, quick=True)
    assert "no such model" in text and "misses >= 50, which is met on another CPU" in text
    whole = json.loads(json.dumps(told.as_json(found, True, {"machine": HERE})))
    (figure,) = whole["claims"][1]["figures"]
    assert figure["p50"] == 30 and figure["committed"]["p50"] == 60 and figure["verdict"] == OUTSIDE
    assert (
        plot.draw(found, tmp_path / "plots" / "found.png") and (tmp_path / "plots" / "found.png").stat().st_size > 1000
    )


def test_full_size_reads_what_the_benchmark_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "speed.py").write_text(
        f"import sys; sys.path.insert(0, {str(suite.ROOT)!r})\n"
        "from pathlib import Path\n"
        "from benchmarks.harness import Spread, Table\n"
        "Path('calls').open('a').write('x')\n"
        "table = Table('speed', machine='m'); table.add('case', 'ratio', Spread.of([70.0]), 'x', target=50); table.save()\n"
    )
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    work = replace(suite_of(tmp_path, CLAIM, replace(CLAIM, name="same")), quick=False)
    found = work.run()
    assert [one.verdict for one in found] == [ORDER, ORDER], [one.problem for one in found]
    # one command serves both claims, and the repository's file is left alone
    assert (tmp_path / "calls").read_text() == "x"
    assert [row["benchmark"] for row in harness.read(tmp_path / "rows" / "own.csv")] == ["speed"]


def test_the_list_costs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["claims"]] == [one.name for one in CLAIMS]
    assert "step" in found["benchmarks"] and "harness" not in found["benchmarks"]
    assert command.main(["--list"]) == 0 and "federated" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--quick has no size for squad"):
        command.main(["--quick", "--only", "squad"])
