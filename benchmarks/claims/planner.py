"""The planner's figure: recomputed from the committed runs, and one of those runs made again as far as two minutes allow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from benchmarks.comparison import report, single, store
from benchmarks.comparison.problems import make
from benchmarks.comparison.store import Run, Runs
from benchmarks.harness import Spread, Table

CASE, METRIC = "auto against n-SPSA", "times fewer forward FLOPs"
MODEL, TASK, SEED = "minilm-l6", "trec", 21
"""One of the figure's runs; among those of the small models `auto` is furthest ahead in it so early."""
LAST = {"n-spsa": 1, "auto": 2}
"""Checkpoints that are made again: of n-SPSA the counts are to be found right, of `auto` its lead."""
LEAD = "test loss below n-SPSA's at the second checkpoint"
PART = f"{MODEL} {TASK} seed {SEED}"


def figure(table: Table, runs: Runs, metric: str = METRIC) -> None:
    """The median over runs, with their range for a spread."""
    found = report.planner_against_spsa(runs)
    table.add(CASE, metric, Spread(found.low, found.median, found.high, found.count), "x", target=3)


def committed() -> Table:
    """The figure as README has it, which stands in no results file."""
    table = Table("claims", Path(os.devnull))
    with contextlib.redirect_stdout(None):
        figure(table, store.read())
    return table


def compared(runs: Runs, method: str) -> Run:
    wanted = ("compare", MODEL, TASK, method, SEED, 512, 600)
    return next(r for r in runs if (r.stage, r.model, r.task, r.method, r.seed, r.shots, r.budget) == wanted)


def quick(table: Table) -> None:
    runs = store.read()
    figure(table, runs, f"{METRIC}, from the committed runs")
    ends = {}
    problem = make(MODEL, TASK, 512, SEED, tuning=False)
    begin = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    for method, last in LAST.items():
        problem.model.load_state_dict(begin)
        run = compared(runs, method)
        ends[method] = single.follow(problem, run, single.CHECKPOINTS, last)[-1]
    baseline, auto = ends["n-spsa"], ends["auto"]
    told = runs[compared(runs, "n-spsa")]
    counted = baseline.flops / told[LAST["n-spsa"]].flops
    table.add(f"{PART} n-spsa", "FLOPs of the first steps over committed", Spread.of([counted]), "x")
    off = baseline.loss / told[LAST["n-spsa"]].loss
    table.add(f"{PART} n-spsa", "test loss after them over committed", Spread.of([off]), "x")
    # a choice of the planner may turn on the last bits of a loss, which differ between CPUs
    lead = told[LAST["auto"]].loss - auto.loss
    table.add(f"{PART} auto", LEAD, Spread.of([lead]), "nats", target=0)


def full(table: Table, folder: Path) -> None:
    figure(table, store.read(folder / "comparison.csv"))
