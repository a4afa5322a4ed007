"""What benchmarks read off runs of `blockzo simulate`: first arrivals, searches of rates, and runs that must not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decomfl, simulated_runs


def curve(root: Path, name: str, points: list[tuple[float, float]], loss: float = 1.2, rows: int = 320) -> None:
    """metrics.jsonl of a run: (FLOPs, accuracy) of each evaluation, and a round without one between any two."""
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for flops, accuracy in points:
        lines += [{"flops": flops, "accuracy": accuracy, "eval_loss": loss, "eval_rows": rows}, {"flops": flops + 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(simulated_runs, "ROOT", tmp_path)
    return tmp_path


def test_both_are_counted_to_their_first_arrival(root: Path) -> None:
    curve(root, "one-sided", [(0, 0.5), (10, 0.7), (20, 0.72), (30, 0.68)])
    curve(root, "auto", [(0, 0.5), (4, 0.68), (8, 0.6)])
    assert simulated_runs.compare("one-sided", "auto") == (30 / 4, 10 / 4)


def test_a_baseline_that_gained_nothing_is_no_target_and_who_never_arrives_has_0(root: Path) -> None:
    curve(root, "flat", [(0, 0.5), (10, 0.52)])
    curve(root, "risen", [(0, 0.5), (10, 0.7)])
    curve(root, "low", [(0, 0.5), (10, 0.6)])
    assert simulated_runs.compare("flat", "risen") is None
    assert simulated_runs.compare("risen", "low") == (0.0, 0.0)


def test_runs_that_begin_elsewhere_are_not_compared(root: Path) -> None:
    curve(root, "right", [(0, 0.83), (10, 0.9)], loss=0.353)
    curve(root, "wrong", [(0, 0.65), (10, 0.9)], loss=0.62)
    with pytest.raises(ValueError, match=r"right begins at a loss of 0\.3530, wrong at 0\.6200 .* expected one model"):
        simulated_runs.compare("right", "wrong")


def test_one_rate_is_tried_and_several_go_on_where_the_best_is_at_an_end() -> None:
    tried: list[str] = []

    def loss_of(lr: str) -> float:
        tried.append(lr)
        return abs(float(lr) - 9.0)

    assert simulated_runs.search(["1"], loss_of) == "1" and tried == ["1"]
    tried.clear()
    assert simulated_runs.search(["1", "3"], loss_of) == "9" and tried == ["1", "3", "9", "27"]


def test_forms_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["decomfl.py", "smollm2-135m", "--forms", "auto", "automatic"])
    with pytest.raises(SystemExit):
        decomfl.main()
    told = capsys.readouterr().err
    assert "found automatic, expected some of half-one-sided" in told and told.rstrip().endswith("auto")
