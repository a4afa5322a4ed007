"""What the CSV says: forward FLOPs and seconds to a fixed accuracy, and their ratios between methods. Nothing else is read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.comparison.methods import METHODS
from benchmarks.comparison.store import Point, Run, Runs

SMOOTH = 3
REFERENCE = "n-spsa"


@dataclass(frozen=True)
class Goal:
    """What is to be reached: a share of the reference's gain; 1: all of it.

    `measure`: "accuracy", or "loss" (on the same rows), which says more where accuracy moves by a few rows.
    `reference`: the method whose gain it is.
    `best`: the best that its smoothed curve ever has, not what it ends with: a run that diverges sets a target, too.
    """

    measure: str = "accuracy"
    share: float = 1.0
    reference: str = REFERENCE
    best: bool = False

    def values(self, points: Sequence[Point]) -> list[float]:
        """The measure at each checkpoint; more is better."""
        return [point.accuracy if self.measure == "accuracy" else -point.loss for point in points]

    def text(self, value: float) -> str:
        """`value` as its measure is written."""
        return f"{self.measure} {value if self.measure == 'accuracy' else -value:.3f}"


LEAST_GAIN = {"accuracy": 0.025, "loss": 0.02}
"""Less than the sampling error of a checkpoint is no gain: who reaches it, and when, is chance."""
ACCURACY = Goal()
GOALS = (ACCURACY, Goal("accuracy", 0.8), Goal("loss"))
BEST = Goal(best=True)
ONE_SIDED, ONE_SIDED_BEST = Goal(reference="one-sided"), Goal(reference="one-sided", best=True)
FALLING, ONE_SIDED_FALLING = Goal(reference="n-spsa-falling"), Goal(reference="one-sided-falling")

SAMPLING_ERROR = 0.026
"""Standard error of an accuracy of 0.7 on 320 rows."""

Case = tuple[str, str, int, int]
"""(model, task, shots, budget): runs of one case are compared."""


def cases(runs: Runs) -> list[Case]:
    """In the order of their first run."""
    return list(dict.fromkeys((r.model, r.task, r.shots, r.budget) for r in runs if r.stage == "compare"))


def of_case(runs: Runs, case: Case) -> dict[str, dict[int, list[Point]]]:
    """Method -> seed -> its points."""
    found: dict[str, dict[int, list[Point]]] = {}
    for run, points in runs.items():
        if run.stage == "compare" and (run.model, run.task, run.shots, run.budget) == case:
            found.setdefault(run.method, {})[run.seed] = points
    return {name: found[name] for name in METHODS if name in found}


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value with its neighbours (SMOOTH in all; fewer at the end): one checkpoint is a few hundred rows.

    The first stays as it is: all runs begin there, and whoever is fast would arrive before it began.
    """
    half = SMOOTH // 2
    return [*values[:1], *(statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(1, len(values)))]


def end(points: Sequence[Point], goal: Goal = ACCURACY) -> float:
    """Mean over the last SMOOTH checkpoints."""
    return statistics.fmean(goal.values(points)[-SMOOTH:])


def gained(points: Sequence[Point], goal: Goal) -> float:
    """The run's end, or the best of its smoothed curve before it diverged."""
    if not goal.best:
        return end(points, goal)
    values = smoothed([value for value, point in zip(goal.values(points), points, strict=True) if not point.diverged])
    return max(values, default=goal.values(points)[0])


def target(by_method: Mapping[str, Mapping[int, Sequence[Point]]], goal: Goal = ACCURACY) -> float | None:
    """What is to be reached: start + share * gain of the reference, means over seeds; None without runs or a gain."""
    seeds = by_method.get(goal.reference)
    if not seeds:
        return None
    start = statistics.fmean(goal.values(points)[0] for points in seeds.values())
    last = statistics.fmean(gained(points, goal) for points in seeds.values())
    return start + goal.share * (last - start) if last - start >= LEAST_GAIN[goal.measure] else None


def reached(points: Sequence[Point], wanted: float, cost: str, goal: Goal = ACCURACY) -> float:
    """Cost (a column) at which the smoothed measure first is `wanted`, linear between checkpoints; or infinity."""
    values = smoothed(goal.values(points))
    costs = [float(getattr(point, cost)) for point in points]
    if values[0] >= wanted:
        return costs[0]
    for i in range(1, len(values)):
        if points[i].diverged:
            return math.inf
        if values[i] >= wanted:
            part = (wanted - values[i - 1]) / (values[i] - values[i - 1])
            return costs[i - 1] + part * (costs[i] - costs[i - 1])
    return math.inf


@dataclass(frozen=True)
class Ratio:
    """How many times less a method costs than a baseline, in one seed.

    `bound`: "" exact; ">=" the baseline never got there, so its whole budget was taken; "<=" the method did not, likewise;
    "none" neither did, and there is no ratio.
    """

    seed: int
    value: float
    bound: str


def ratios(
    method: Mapping[int, Sequence[Point]],
    baseline: Mapping[int, Sequence[Point]],
    wanted: float,
    cost: str,
    goal: Goal = ACCURACY,
) -> list[Ratio]:
    """For every seed that both have, but those where the target stands before any training."""
    found = []
    for seed in sorted(set(method) & set(baseline)):
        own, other = reached(method[seed], wanted, cost, goal), reached(baseline[seed], wanted, cost, goal)
        if own == 0.0 or other == 0.0:
            continue
        own_all, other_all = (float(getattr(p[-1], cost)) for p in (method[seed], baseline[seed]))
        if math.isinf(own) and math.isinf(other):
            found.append(Ratio(seed, math.nan, "none"))
        elif math.isinf(own):
            found.append(Ratio(seed, other / own_all, "<="))
        elif math.isinf(other):
            found.append(Ratio(seed, other_all / own, ">="))
        else:
            found.append(Ratio(seed, other / own, ""))
    return found


@dataclass(frozen=True)
class Summary:
    """Median and range of ratios. A bound counts as its value; a seed that neither reached counts as 1 (no gain shown)."""

    median: float
    low: float
    high: float
    count: int
    bounded: int
    neither: int

    @staticmethod
    def of(found: Iterable[Ratio]) -> Summary | None:
        held = list(found)
        if not held:
            return None
        values = [1.0 if ratio.bound == "none" else ratio.value for ratio in held]
        return Summary(
            statistics.median(values),
            min(values),
            max(values),
            len(held),
            sum(ratio.bound in ("<=", ">=") for ratio in held),
            sum(ratio.bound == "none" for ratio in held),
        )


def candidates(by_method: Mapping[str, object]) -> list[str]:
    """blockzo's own methods: not those that it is compared with."""
    return [name for name in by_method if not METHODS[name].base]


def best_method(
    by_method: Mapping[str, Mapping[int, Sequence[Point]]], wanted: float, goal: Goal = ACCURACY
) -> str | None:
    """Of the candidates the one with the lowest median FLOPs to the target; of equal ones the better end."""

    def rank(name: str) -> tuple[float, float]:
        costs = [reached(points, wanted, "flops", goal) for points in by_method[name].values()]
        return statistics.median(costs), -statistics.fmean(end(points, goal) for points in by_method[name].values())

    return min(candidates(by_method), key=rank, default=None)


Clocks = Mapping[Run, tuple[str, ...]]
"""Where and when each run was timed (`store.clocks`)."""


def side_by_side(clocks: Clocks, case: Case, method: str, baseline: str) -> set[int]:
    """Seeds of a case whose runs of both methods were timed on one machine, by one commit, on one day."""
    found: dict[str, dict[int, tuple[str, ...]]] = {method: {}, baseline: {}}
    for run, clock in clocks.items():
        if run.stage == "compare" and (run.model, run.task, run.shots, run.budget) == case and run.method in found:
            found[run.method][run.seed] = clock
    return {seed for seed, clock in found[method].items() if found[baseline].get(seed) == clock}


def over_cases(
    runs: Runs, method: str | None, baseline: str, cost: str, goal: Goal = ACCURACY, clocks: Clocks | None = None
) -> list[Ratio]:
    """Ratios of all cases and seeds; `method` None: the best of each case. With `clocks` of pairs timed side by side alone.

    Raises:
        ValueError: seconds without clocks.
    """
    if cost == "seconds" and clocks is None:
        raise ValueError("seconds of runs that may be of two machines; expected clocks, to pair those of one")
    found: list[Ratio] = []
    for case in cases(runs):
        by_method = of_case(runs, case)
        wanted = target(by_method, goal)
        if wanted is None:
            continue
        name = method or best_method(by_method, wanted, goal)
        if name in by_method and baseline in by_method:
            own = by_method[name]
            if clocks is not None:
                together = side_by_side(clocks, case, name, baseline)
                own = {seed: points for seed, points in own.items() if seed in together}
            found += ratios(own, by_method[baseline], wanted, cost, goal)
    return found


def ahead(by_method: Mapping[str, Mapping[int, Sequence[Point]]], method: str, others: Sequence[str]) -> list[float]:
    """Accuracy of a method less that of the best of the others, at each checkpoint after the start of each seed that all have."""
    if not all(name in by_method for name in (method, *others)):
        return []
    found = []
    for seed in sorted(set.intersection(*(set(by_method[name]) for name in (method, *others)))):
        rows = zip(by_method[method][seed], *(by_method[name][seed] for name in others), strict=True)
        found += [own.accuracy - max(other.accuracy for other in rest) for own, *rest in rows if own.checkpoint]
    return found


def chosen_rates(runs: Runs, case: Case) -> dict[str, str]:
    return {r.method: r.lr for r in runs if r.stage == "compare" and (r.model, r.task, r.shots, r.budget) == case}
