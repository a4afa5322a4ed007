"""The comparison of estimators: the keyed file, the tuning rule, eager MeZO, what is read off curves, and a resumed command."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from benchmarks.baselines.mezo import EagerMeZO
from benchmarks.comparison import analysis, curves, methods, plan, report, run, single, store, tuning
from benchmarks.comparison.store import KEY, Place, Point, Run, Runs
from blockzo.optim.step import step_seed

PLACE = Place(1, 1, "2.0", "a, cpu", "abc", "2026-01-01")


def run_of(method: str = "mezo", seed: int = 13, **other: Any) -> Run:
    return replace(Run("compare", "m", "t", 16, method, "0.001", seed, 100), **other)


def points(accuracies: list[float], cost: float = 10.0, seconds: float = 1.0) -> list[Point]:
    last = len(accuracies) - 1
    return [
        Point(i, last, round(1000 * i * cost), i * cost, 2 * i, i, i * seconds, accuracy, 1.0 - accuracy, 0.5, 0)
        for i, accuracy in enumerate(accuracies)
    ]


# --- the file


def test_runs_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    store.mend(path)
    wanted = {run_of(): points([0.5, 0.625]), run_of(seed=21): points([0.5, 0.75, 0.8125])}
    for key, found in wanted.items():
        store.append(path, key, found, PLACE)
    assert store.read(path) == wanted
    assert store.places(path) == [
        {"threads": "1", "workers": "1", "versions": "2.0", "cpu": "a, cpu", "commit": "abc", "date": "2026-01-01"}
    ]


@pytest.mark.parametrize("cut", [1, 5, 60, 130])
def test_a_kill_during_the_write_costs_that_run_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "c.csv"
    store.append(path, run_of(), points([0.5, 0.6]), PLACE)
    whole = path.read_text()
    store.append(path, run_of(seed=21), points([0.5, 0.7]), PLACE)
    path.write_text(path.read_text()[:-cut])
    assert list(store.read(path)) == [run_of()]
    assert store.mend(path) > 0
    assert path.read_text() == whole
    store.append(path, run_of(seed=21), points([0.5, 0.7]), PLACE)
    assert len(store.read(path)) == 2


def test_a_key_twice_and_a_partial_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    store.append(path, run_of(), points([0.5, 0.6]), PLACE)
    with pytest.raises(ValueError, match="a whole run"):
        store.append(path, run_of(seed=21), points([0.5, 0.6, 0.7])[:2], PLACE)
    store.append(path, run_of(), points([0.5, 0.6]), PLACE)
    with pytest.raises(ValueError, match="twice"):
        store.read(path)


def test_runs_of_one_problem_begin_at_one_loss(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    store.append(path, run_of(), points([0.5, 0.6]), PLACE)
    before = path.read_text()
    with pytest.raises(ValueError, match="begins at loss 0.4000, .*began at 0.5000"):
        store.append(path, run_of(method="auto"), points([0.6, 0.7]), PLACE)
    assert path.read_text() == before
    store.append(path, run_of(method="auto"), points([0.5005, 0.7]), PLACE)
    store.append(path, run_of(seed=21), points([0.6, 0.7]), PLACE)


def test_committed_runs_of_one_problem_begin_at_one_loss() -> None:
    begin: dict[object, list[float]] = {}
    for key, found in store.read().items():
        begin.setdefault(store.problem_of(key), []).append(found[0].loss)
    assert all(max(losses) - min(losses) <= store.BEGINNING for losses in begin.values())


def test_another_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has columns a, b"):
        store.read(path)


# --- the tuning rule


def search(loss_at: Callable[[tuple[int, ...]], float], axes: int) -> dict[tuple[int, ...], float]:
    scores: dict[tuple[int, ...], float] = {}
    while (place := tuning.proposal(scores, axes)) is not None:
        scores[place] = loss_at(place)
    return scores


def test_the_search_brackets_the_best_rate() -> None:
    found = search(lambda place: abs(place[0] - 1.2), 1)
    assert list(found) == [(0,), (1,), (2,)]
    assert tuning.best(found) == (1,)
    assert list(search(lambda place: abs(place[0] + 2), 1)) == [(0,), (1,), (-1,), (-2,), (-3,)]


def test_every_method_has_the_same_number_of_tuning_runs_at_most() -> None:
    assert len(search(lambda place: -sum(place), 2)) == tuning.RUNS
    # the best of rates that rise without end is no best: the search goes on, but not for ever
    assert len(search(lambda place: -sum(place), 1)) == tuning.MOST_RUNS
    assert list(search(lambda place: abs(place[0] - 4), 1)) == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert (0, 1) in search(lambda place: abs(place[0]) - place[1], 2)


def test_a_diverged_run_is_never_chosen() -> None:
    good, bad = points([0.5, 0.6, 0.7]), [replace(p, diverged=1) for p in points([0.9, 0.9, 0.9])]
    assert tuning.score(bad) == math.inf
    assert tuning.score(good) == pytest.approx(0.3)


def test_rates_of_the_grid() -> None:
    assert methods.rates_at("mezo", (1,), 1e-6) == pytest.approx([3e-6])
    assert methods.rates_at("spzo-decoupled-rates", (0, 0), 1e-6) == pytest.approx([1e-6, 4e-6])
    assert methods.rates_at("spzo-decoupled-rates", (-1, -1), 3e-6) == pytest.approx([1e-6, 1e-6])
    assert methods.numbers(methods.text([1e-6, 4e-6])) == [1e-6, 4e-6]


# --- eager MeZO


def quadratic() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, lambda m, batch: (m(batch) ** 2).mean()


def test_eager_mezo_is_mezo_along_the_same_direction() -> None:
    """With blockzo's noise as its source, two steps end where `bz.MeZO` ends, up to the rounding of the in-place passes."""
    (own, loss), (reference, _) = quadratic(), quadratic()
    batch = torch.randn(5, 3)

    def draw(seed: int, parameters: list[Tensor], use: Callable[[Tensor, Tensor], object]) -> None:
        noise = bz.Noise(seed, "gaussian")
        names = [name for name, _ in own.named_parameters()]
        for name, parameter in zip(names, parameters, strict=True):
            use(parameter, noise.sample(name, parameter.shape))

    eager = EagerMeZO(own, loss, lr=0.01, eps=1e-2, seed=7)
    eager.draw = draw
    zo = bz.ZO(reference, loss, bz.MeZO(), lr=0.01, eps=1e-2, seed=7, distribution="gaussian")
    for _ in range(2):
        found, wanted = eager.step(batch), zo.step(batch)
        assert found.scalar == pytest.approx(wanted.scalars[0][0], rel=1e-3, abs=1e-5)
    for a, b in zip(own.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_eager_mezo_draws_the_same_noise_in_all_four_passes() -> None:
    model, loss = quadratic()
    before = [p.detach().clone() for p in model.parameters()]
    result = EagerMeZO(model, loss, lr=0.05, eps=1e-3, seed=3).step(torch.randn(5, 3))
    torch.manual_seed(step_seed(3, 0))
    for old, new in zip(before, model.parameters(), strict=True):
        z = torch.normal(0.0, 1.0, old.shape)
        torch.testing.assert_close(new.detach(), old - 0.05 * result.scalar * z, rtol=0, atol=1e-6)


def test_eager_mezo_refuses_a_loss_that_is_not_finite() -> None:
    model, _ = quadratic()
    with pytest.raises(ValueError, match="finite"):
        EagerMeZO(model, lambda m, batch: torch.tensor(math.nan), 0.1, 1e-3, 0).step(None)


# --- what is read off curves


def test_cost_to_an_accuracy_is_between_checkpoints() -> None:
    flat = points([0.5, 0.5, 0.5, 0.8, 0.8, 0.8])
    # smoothed: .5 .5 .6 .7 .8 .8
    assert analysis.reached(flat, 0.65, "spent") == pytest.approx(25.0)
    assert analysis.reached(flat, 0.65, "seconds") == pytest.approx(2.5)
    assert analysis.reached(flat, 0.5, "spent") == 0.0
    assert math.isinf(analysis.reached(flat, 0.81, "spent"))


def test_one_lucky_checkpoint_is_not_an_arrival() -> None:
    assert math.isinf(analysis.reached(points([0.5, 0.5, 0.8, 0.5, 0.5]), 0.75, "spent"))


def test_checkpoints_are_compared_with_the_better_of_the_others_in_the_same_run() -> None:
    found = {
        "auto": {13: points([0.5, 0.6, 0.7]), 21: points([0.5, 0.5, 0.5]), 42: points([0.5, 0.9, 0.9])},
        "n-spsa": {13: points([0.9, 0.5, 0.8]), 21: points([0.5, 0.5, 0.5])},
        "one-sided": {13: points([0.9, 0.7, 0.6]), 21: points([0.5, 0.4, 0.45])},
    }
    assert analysis.ahead(found, "auto", ("n-spsa", "one-sided")) == pytest.approx([-0.1, -0.1, 0.0, 0.0])
    assert analysis.ahead(found, "auto", ("n-spsa", "fzoo")) == []


def test_ratios_and_their_bounds() -> None:
    fast, slow = points([0.5, 0.7, 0.7, 0.7, 0.7]), points([0.5, 0.5, 0.5, 0.5, 0.5])
    baseline = points([0.5, 0.7, 0.7, 0.7, 0.7], cost=40.0)
    exact, bound, other, none = (
        analysis.ratios({13: a}, {13: b}, 0.65, "spent")[0]
        for a, b in ((fast, baseline), (fast, slow), (slow, baseline), (slow, slow))
    )
    assert (exact.value, exact.bound) == (pytest.approx(4.0), "")
    assert bound.bound == ">=" and bound.value > 1
    # a method that never arrives is charged its whole budget: a loss, and a lenient bound on it
    assert other.bound == "<="
    assert none.bound == "none" and math.isnan(none.value)
    summary = analysis.Summary.of([exact, none, bound])
    assert summary is not None
    assert (summary.count, summary.bounded, summary.neither) == (3, 1, 1)
    assert summary.median == pytest.approx(sorted([4.0, 1.0, bound.value])[1])


def test_who_is_fast_does_not_arrive_before_it_began() -> None:
    fast, slow = points([0.5, 0.9, 0.9, 0.9]), points([0.5, 0.5, 0.6, 0.7])
    assert 0 < analysis.reached(fast, 0.65, "spent") < 10
    assert analysis.ratios({13: fast}, {13: slow}, 0.65, "spent")[0].value > 1


def example() -> Runs:
    found: Runs = {}
    for seed in (13, 21):
        found[run_of("n-spsa", seed)] = points([0.5, 0.55, 0.6, 0.65, 0.7, 0.7, 0.7])
        found[run_of("eager-mezo", seed)] = points([0.5, 0.5, 0.55, 0.6, 0.65, 0.7, 0.7], seconds=8.0)
        found[run_of("spzo-crossed", seed)] = points([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
        found[run_of("spzo-decoupled", seed)] = points([0.5, 0.7, 0.75, 0.75, 0.75, 0.75, 0.75])
    return found


def test_a_baseline_that_diverges_is_met_at_the_best_it_ever_had() -> None:
    lost = [*points([0.5, 0.6, 0.7, 0.8, 0.7])[:4], replace(points([0.5, 0.6, 0.7, 0.8, 0.5])[4], diverged=1)]
    by_method = {"n-spsa": {13: lost}, "one-sided": {13: points([0.5, 0.55, 0.55, 0.55, 0.55])}}
    assert analysis.target(by_method) == pytest.approx((0.7 + 0.8 + 0.5) / 3)
    assert analysis.target(by_method, analysis.BEST) == pytest.approx(0.75)
    assert analysis.target(by_method, analysis.ONE_SIDED) == pytest.approx(0.55)
    assert analysis.target(by_method, analysis.ONE_SIDED_BEST) == pytest.approx(0.55)
    gone = [replace(point, diverged=1) for point in points([0.5, 0.6])]
    assert analysis.target({"n-spsa": {13: gone}}, analysis.BEST) is None


def test_the_target_is_where_the_reference_ends_and_the_best_is_ours() -> None:
    by_method = analysis.of_case(example(), ("m", "t", 16, 100))
    assert analysis.target(by_method) == pytest.approx(0.7)
    assert analysis.target(by_method, analysis.Goal("accuracy", 0.5)) == pytest.approx(0.6)
    assert analysis.target({"n-spsa": {13: points([0.6, 0.5, 0.5, 0.5])}}) is None
    assert analysis.target({"n-spsa": {13: points([0.6, 0.62, 0.62, 0.62])}}) is None
    assert analysis.target({}) is None
    assert analysis.best_method(by_method, 0.65) == "spzo-decoupled"
    here = dict.fromkeys(example(), ("here",))
    ratio = analysis.over_cases(example(), None, "eager-mezo", "seconds", clocks=here)
    assert [r.seed for r in ratio] == [13, 21] and all(r.value > 8 for r in ratio)
    loss = analysis.Goal("loss")
    assert analysis.target(by_method, loss) == pytest.approx(-0.3) and loss.text(-0.3) == "loss 0.300"
    # the loss of these points is 1 - accuracy
    to_loss = analysis.over_cases(example(), None, "eager-mezo", "seconds", loss, here)
    assert [r.value for r in to_loss] == pytest.approx([r.value for r in ratio])


def test_seconds_are_compared_where_both_runs_were_timed_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    elsewhere = run_of("eager-mezo", 13)
    for key, found in example().items():
        store.append(path, key, found, replace(PLACE, threads=2) if key == elsewhere else PLACE)
    clocks = store.clocks(path)
    assert set(clocks) == set(example()) and clocks[elsewhere] != clocks[run_of("n-spsa", 13)]
    ratio = analysis.over_cases(example(), None, "eager-mezo", "seconds", clocks=clocks)
    assert [r.seed for r in ratio] == [21]
    assert [r.seed for r in analysis.over_cases(example(), None, "eager-mezo", "flops")] == [13, 21]
    with pytest.raises(ValueError, match="expected clocks"):
        analysis.over_cases(example(), None, "eager-mezo", "seconds")
    told = next(line for line in report.markdown(example(), [], clocks).splitlines() if line.startswith("| eager-mezo"))
    assert "| elsewhere |" in told


def test_the_page_and_the_pictures_come_from_the_file(tmp_path: Path) -> None:
    path, page = tmp_path / "c.csv", tmp_path / "results.md"
    for key, found in example().items():
        store.append(path, key, found, PLACE)
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(path, page)
    text = page.read_text()
    assert "| forward FLOPs, best blockzo method against n-SPSA |" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    assert (
        "| spzo-crossed | 0.001 | 2 | 0.500 ± 0.000 |" in text
        and "| not reached | not reached | 0 of 2 | not reached | 0 of 2 |" in text
    )
    report.write(path, page)
    assert page.read_text() == text
    assert [p.name for p in curves.plot(store.read(path), tmp_path)] == ["comparison-m-t.png"]
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        report.write(path, page)


def test_baselines_whose_rate_falls_have_rows_and_a_target_of_their_own() -> None:
    runs = example()
    for seed in (13, 21):
        runs[run_of("n-spsa-falling", seed)] = points([0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8])
        runs[run_of("auto", seed)] = points([0.5, 0.8, 0.85, 0.85, 0.75, 0.8, 0.85])
    text = report.markdown(runs, [], dict.fromkeys(runs, ("here",)))
    row = next(line for line in text.splitlines() if "n-SPSA with a falling rate" in line)
    assert row.split("|")[4].strip() == "2" and 1 < float(row.split("|")[2]) < 4
    assert "| forward FLOPs, `auto` against one-sided with a falling rate, to where that ends | not measured |" in text
    assert "| m, t, 100 forwards; less the best of n-spsa-falling | 12 | +5.0 points | -5.0 | 2 |" in text


def test_the_page_is_that_of_the_file() -> None:
    runs = store.read()
    assert analysis.cases(runs), "run: python benchmarks/estimators.py"
    made = report.markdown(runs, store.places(), store.clocks())
    assert report.placed(report.PAGE, made) == report.PAGE.read_text(), "run: python benchmarks/estimators.py --table"


def test_the_band_is_a_confidence_interval() -> None:
    assert curves.mean_and_band([2.0]) == (2.0, 0.0)
    mean, half = curves.mean_and_band([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.30 / math.sqrt(3)))


# --- the command


class Quadratic:
    """A problem of six weights; scored by its loss."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
        self.unit = 10.0
        self.data = torch.randn(8, 2)

    def loss_fn(self, model: nn.Module, batch: Tensor) -> Tensor:
        return ((model(batch) - 1) ** 2).mean()

    def batch(self, step: int) -> Tensor:
        return self.data

    def score(self) -> SimpleNamespace:
        loss = self.train_loss()
        return SimpleNamespace(loss=loss, accuracy=1.0 / (1.0 + loss))

    def train_loss(self) -> float:
        with torch.no_grad():
            return float(self.loss_fn(self.model, self.data))


REQUEST = plan.Request(("m",), ("t",), ("mezo", "n-spsa", "one-sided"), (13, 21), 16, 300)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made = lambda model, task, shots, seed, tuning: Quadratic(seed)  # noqa: E731
    monkeypatch.setattr(single, "make", made)
    monkeypatch.setattr(single, "_HELD", {})
    monkeypatch.setattr(single, "_BEGINNINGS", {})
    monkeypatch.setattr(run, "make", made)


def all_units(work: run.Work) -> None:
    for unit in plan.units(work.request):
        run.run_unit(work, unit)


def test_a_stopped_command_goes_on(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.Work(REQUEST, tmp_path / "whole.csv", 1, 1, None)
    store.mend(whole.path)
    all_units(whole)
    wanted = store.read(whole.path)
    assert {(r.method, r.seed) for r in wanted if r.stage == "compare"} == {
        (method, seed) for method in REQUEST.methods for seed in REQUEST.seeds
    }
    assert not any(plan.left(REQUEST, wanted).values())

    work = replace(whole, path=tmp_path / "stopped.csv")
    store.mend(work.path)
    calls = 0
    execute = single.execute

    def stopping(run: Run) -> list[Point]:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return execute(run)

    monkeypatch.setattr(single, "execute", stopping)
    with pytest.raises(KeyboardInterrupt):
        all_units(work)
    assert len(store.read(work.path)) == 4
    with work.path.open("a") as file:
        file.write("compare,m,t,16,me")
    store.mend(work.path)
    all_units(work)
    found = store.read(work.path)
    # the same runs with the same losses, each once; only clocks differ
    assert calls == 5 + len(wanted) - 4
    timeless = {key: [replace(p, seconds=0.0) for p in value] for key, value in wanted.items()}
    assert {key: [replace(p, seconds=0.0) for p in value] for key, value in found.items()} == timeless
    lines = [line.split(",") for line in work.path.read_text().splitlines()[1:]]
    keys = [(*line[: len(KEY)], line[len(KEY)]) for line in lines]
    assert len(keys) == len(set(keys))


def test_no_run_begins_after_the_time(small: None, tmp_path: Path) -> None:
    work = run.Work(REQUEST, tmp_path / "c.csv", 1, 1, until=0.0)
    store.mend(work.path)
    all_units(work)
    assert store.read(work.path) == {}
    assert plan.left(REQUEST, {}) == {("m", "t"): 3 * tuning.MOST_RUNS * 90 + 6 * 300}


def test_a_run_spends_its_budget_and_a_diverged_one_says_so(small: None) -> None:
    key = Run("compare", "m", "t", 16, "mezo", "0.01", 13, 300)
    found = single.follow(Quadratic(13), key, 8)  # type: ignore[arg-type]
    assert [p.checkpoint for p in found] == list(range(9)) and not found[-1].diverged
    assert found[0].spent == 0 and 300 <= found[-1].spent < 320
    assert found[-1].forwards == 2 * found[-1].steps and found[-1].loss < found[0].loss
    wild = single.follow(Quadratic(13), replace(key, lr="1e+20"), 8)  # type: ignore[arg-type]
    assert len(wild) == 9 and wild[-1].diverged


def test_a_falling_rate_is_nothing_when_the_budget_is_spent(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bz.ZO] = []
    entry = methods.METHODS["n-spsa-falling"]

    def make(problem: Any, rates: Any, seed: int) -> Any:
        made.append(entry.make(problem, rates, seed))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setitem(methods.METHODS, "n-spsa-falling", replace(entry, make=make))
    key, problem = Run("compare", "m", "t", 16, "n-spsa-falling", "0.01", 13, 320), Quadratic(13)
    for _ in range(2):  # a process keeps its problem
        single.follow(problem, key, 1, 0)  # type: ignore[arg-type]
        assert made[-1].rates(0) == [0.01]
        problem.spent = 1.0
    found = single.follow(problem, key, 4)  # type: ignore[arg-type]
    before = found[-1].flops * (1 - 1 / found[-1].steps) / (320 * problem.unit)
    assert 0.8 < before < 1 and made[-1].rates(0) == pytest.approx([0.01 * (1 - before)])


def test_every_run_begins_at_the_same_weights(small: None) -> None:
    key = Run("compare", "m", "t", 16, "mezo", "0.01", 13, 300)
    first, again, other = single.execute(key), single.execute(key), single.execute(replace(key, method="n-spsa"))
    assert [replace(p, seconds=0.0) for p in again] == [replace(p, seconds=0.0) for p in first]
    assert (other[0].loss, other[0].accuracy) == (first[0].loss, first[0].accuracy)


def test_an_eager_run_needs_mezos_search_and_units_keep_their_order() -> None:
    request = replace(REQUEST, methods=("eager-mezo", "n-spsa"), tasks=("t", "u"))
    found = plan.units(request)
    assert [u.method for u in found[:2]] == ["n-spsa", "mezo"]
    # a whole seed of all problems before the next seed
    assert [(u.task, u.seed) for u in found[4:]] == [("t", 13), ("u", 13), ("t", 21), ("u", 21)]
    assert found[4].needs(found[0]) and not found[4].needs(found[2]) and not found[0].needs(found[4])
