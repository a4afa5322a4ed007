"""What is run, in which order, and what of it is left: from the request and the CSV alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.comparison import methods, tuning
from benchmarks.comparison.problems import SPLITS, TUNING_SEED
from benchmarks.comparison.store import Run, Runs

PARTS = {
    1: (("stories15m", "minilm-l6"), ("sst2", "trec"), SPLITS),
    2: (("stories15m", "minilm-l6", "smollm2-135m", "mpnet-base"), ("sst2", "trec", "sst5", "rte"), SPLITS[:2]),
}
"""Models, tasks and seeds of the two parts; what part 1 holds is in the CSV already when part 2 begins."""


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    shots: int
    budget: int

    @property
    def problems(self) -> list[tuple[str, str]]:
        return [(model, task) for model in self.models for task in self.tasks]

    @property
    def tuning_budget(self) -> int:
        return max(1, round(tuning.SHARE * self.budget))


@dataclass(frozen=True)
class Unit:
    """A piece of work for one process: the tuning of one method, or all methods on one problem and seed.

    A method is compared in the unit of its problem and seed, in the same process as eager MeZO: their wall times meet the same
    machine. `seed` None: tuning.
    """

    model: str
    task: str
    method: str | None
    seed: int | None

    def needs(self, other: Unit) -> bool:
        tuned_first = self.seed is not None and other.seed is None
        return tuned_first and (self.model, self.task) == (other.model, other.task)


def units(request: Request) -> list[Unit]:
    """Seed after seed, all problems with all methods: a stop leaves whole comparisons of fewer seeds."""
    found: list[Unit] = []
    tuned = [name for name in request.methods if methods.METHODS[name].rate_of is None]
    tuned += [of for of in rate_owners(request.methods) if of not in tuned]
    for model, task in request.problems:
        found += [Unit(model, task, method, None) for method in tuned]
    for seed in request.seeds:
        found += [Unit(model, task, None, seed) for model, task in request.problems]
    return found


def rate_owners(names: Sequence[str]) -> list[str]:
    """Methods whose rate another one takes over."""
    return [of for name in names if (of := methods.METHODS[name].rate_of) is not None]


def centre_of(request: Request, model: str, task: str, method: str, runs: Runs) -> float | None:
    """The centre of a method's grid as its first tuning run has it; None before that run. So it is never computed twice."""
    for run in runs:
        known = (run.stage, run.model, run.task, run.shots, run.method, run.budget)
        if known == ("tune", model, task, request.shots, method, request.tuning_budget):
            return methods.numbers(run.lr)[0]
    return None


def tuning_runs(request: Request, unit: Unit, runs: Runs, centre: float) -> dict[tuple[int, ...], Run]:
    """The runs of the search that are done, in its order."""
    assert unit.method is not None
    done: dict[tuple[int, ...], Run] = {}
    scores: dict[tuple[int, ...], float] = {}
    axes = methods.METHODS[unit.method].axes
    while (place := tuning.proposal(scores, axes)) is not None:
        run = tuning_run(request, unit, place, centre)
        if run not in runs:
            break
        done[place], scores[place] = run, tuning.score(runs[run])
    return done


def tuning_run(request: Request, unit: Unit, place: Sequence[int], centre: float) -> Run:
    assert unit.method is not None
    lr = methods.text(methods.rates_at(unit.method, place, centre))
    return Run("tune", unit.model, unit.task, request.shots, unit.method, lr, TUNING_SEED, request.tuning_budget)


def next_tuning(request: Request, unit: Unit, runs: Runs, centre: float) -> Run | None:
    """The next run of a method's search; None where it has ended."""
    assert unit.method is not None
    done = tuning_runs(request, unit, runs, centre)
    scores = {place: tuning.score(runs[run]) for place, run in done.items()}
    place = tuning.proposal(scores, methods.METHODS[unit.method].axes)
    return None if place is None else tuning_run(request, unit, place, centre)


def tuned_rate(request: Request, model: str, task: str, method: str, runs: Runs) -> str | None:
    """The rate that a method's search chose, as text; None before the search has ended."""
    owner = methods.METHODS[method].rate_of or method
    unit = Unit(model, task, owner, None)
    centre = centre_of(request, model, task, owner, runs)
    if centre is None or next_tuning(request, unit, runs, centre) is not None:
        return None
    done = tuning_runs(request, unit, runs, centre)
    return done[tuning.best({place: tuning.score(runs[run]) for place, run in done.items()})].lr


def compare_run(request: Request, unit: Unit, method: str, lr: str) -> Run:
    assert unit.seed is not None
    return Run("compare", unit.model, unit.task, request.shots, method, lr, unit.seed, request.budget)


def finished(request: Request, unit: Unit, runs: Runs) -> bool:
    """Whether all runs of a unit are in the CSV."""
    if unit.seed is None:
        assert unit.method is not None
        return tuned_rate(request, unit.model, unit.task, unit.method, runs) is not None
    rates = {name: tuned_rate(request, unit.model, unit.task, name, runs) for name in request.methods}
    return all(lr is not None and compare_run(request, unit, name, lr) in runs for name, lr in rates.items())


def left(request: Request, runs: Runs) -> dict[tuple[str, str], float]:
    """Plain forwards of a training batch that are still to be run for each problem, at most."""
    found = dict.fromkeys(request.problems, 0.0)
    for unit in units(request):
        problem = (unit.model, unit.task)
        if unit.seed is None:
            assert unit.method is not None
            centre = centre_of(request, unit.model, unit.task, unit.method, runs)
            if centre is None:
                found[problem] += tuning.MOST_RUNS * request.tuning_budget
            elif next_tuning(request, unit, runs, centre) is not None:
                done = len(tuning_runs(request, unit, runs, centre))
                found[problem] += (tuning.MOST_RUNS - done) * request.tuning_budget
            continue
        for method in request.methods:
            lr = tuned_rate(request, unit.model, unit.task, method, runs)
            if lr is None or compare_run(request, unit, method, lr) not in runs:
                found[problem] += request.budget
    return found
