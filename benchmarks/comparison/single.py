"""One run: a method on a problem until its FLOPs are spent, scored at fixed fractions of them."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.comparison.methods import METHODS, numbers
from benchmarks.comparison.problems import Problem, Score, make
from benchmarks.comparison.store import Place, Point, Run
from benchmarks.harness import commit, cpu_name, versions

CHECKPOINTS = 12
TUNING_CHECKPOINTS = 4


def fractions(checkpoints: int) -> list[float]:
    """Of the budget, at which a run is scored: denser at the start, where curves bend."""
    return [(number / checkpoints) ** 1.5 for number in range(checkpoints + 1)]


def checkpoints(run: Run) -> int:
    return TUNING_CHECKPOINTS if run.stage == "tune" else CHECKPOINTS


def execute(run: Run) -> list[Point]:
    """A point for every checkpoint; after a loss that is not finite all say `diverged` and repeat the one that found it."""
    return follow(_fresh(run), run, checkpoints(run))


_Key = tuple[str, str, int, int, bool]
_HELD: dict[_Key, tuple[Problem, list[Tensor]]] = {}


def _fresh(run: Run) -> Problem:
    """The run's problem with its first weights; a process keeps the last problem, since making one takes half a minute."""
    key = (run.model, run.task, run.shots, run.seed, run.stage == "tune")
    if METHODS[run.method].lora:
        # adapters change the model itself
        return make(*key)
    if key not in _HELD:
        _HELD.clear()
        problem = make(*key)
        _HELD[key] = problem, [p.detach().clone() for p in problem.model.parameters()]
    problem, weights = _HELD[key]
    with torch.no_grad():
        for parameter, weight in zip(problem.model.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return problem


def follow(problem: Problem, run: Run, count: int, last: int | None = None) -> list[Point]:
    """The points of a run with `count` checkpoints, as far as checkpoint `last`."""
    problem.spent = 0.0
    stepper = METHODS[run.method].make(problem, numbers(run.lr), run.seed)
    flops, forwards, steps, seconds = 0, 0, 0, 0.0
    points: list[Point] = []
    for number, fraction in enumerate(fractions(count)[: None if last is None else last + 1]):
        diverged = False
        while flops < fraction * run.budget * problem.unit and not diverged:
            batch = problem.batch(steps)
            problem.spent = flops / (run.budget * problem.unit)
            begin = time.perf_counter()
            try:
                result = stepper.step(batch)
            except ValueError as error:
                if "finite" not in str(error):
                    raise
                diverged = True
                break
            seconds += time.perf_counter() - begin
            flops, forwards, steps = flops + result.flops, forwards + result.forwards, steps + 1
        score, seen = _begin(problem, run) if number == 0 else (problem.score(), problem.train_loss())
        diverged = diverged or not (math.isfinite(score.loss) and math.isfinite(seen))
        point = Point(
            number,
            count,
            flops,
            flops / problem.unit,
            forwards,
            steps,
            seconds,
            score.accuracy,
            score.loss,
            seen,
            int(diverged),
        )
        points.append(point)
        if diverged:
            points += [replace(point, checkpoint=later) for later in range(number + 1, count + 1)]
            break
    return points


_BEGINNINGS: dict[Run, tuple[Score, float]] = {}


def _begin(problem: Problem, run: Run) -> tuple[Score, float]:
    """Scores before training; all methods and rates begin at the same weights, so a process makes them once."""
    key = replace(run, method="", lr="", budget=0)
    if key not in _BEGINNINGS:
        _BEGINNINGS[key] = problem.score(), problem.train_loss()
    return _BEGINNINGS[key]


def place(workers: int) -> Place:
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return Place(torch.get_num_threads(), workers, versions(), cpu_name(), commit(), today)


def plain_seconds(problem: Problem, batches: Sequence[int] = (0, 1, 2)) -> float:
    """Wall time of a plain forward of a training batch."""
    with torch.no_grad():
        problem.loss_fn(problem.model, problem.batch(0))
        begin = time.perf_counter()
        for step in batches:
            problem.loss_fn(problem.model, problem.batch(step))
        return (time.perf_counter() - begin) / len(batches)
