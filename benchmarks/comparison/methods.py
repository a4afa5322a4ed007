"""The methods that are compared, each a function of (model, loss, rates, eps, seed), and the centre of its rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import blockzo as bz
from benchmarks.baselines.mezo import EagerMeZO
from benchmarks.comparison.counted import Counted
from benchmarks.comparison.first_order import AdamW, add_adapters
from benchmarks.comparison.problems import Problem, plain_flops
from blockzo.methods.base import Method as Rule

EPS = 1e-3
"""One for all methods: float32 leaves the losses' difference well above rounding, curvature well below it."""
FACTOR = 3.0
"""Between neighbouring rates."""
RATIOS = 4.0
"""Between neighbouring ratios of the late block's rate to the early one's, where a method has a rate for each."""
PAIR_RATE = {"stories15m": 1e-6, "minilm-l6": 5e-5, "mpnet-base": 3e-5, "smollm2-135m": 2.43e-5}
"""Centre of the rates for one symmetric pair a step; a method's own centre is this by `Entry.centre`."""


class Stepper(Protocol):
    def step(self, batch: Any) -> Any:
        """Returns what has `.flops` and `.forwards` (`StepResult`)."""


Make = Callable[[Problem, Sequence[float], int], Stepper]


@dataclass(frozen=True)
class Entry:
    """A method of the comparison.

    Attributes:
        make: (problem, rates, seed) -> what steps.
        directions: that the block with the fewest has in a step. Variance falls in proportion to it, and
            so rises the rate that the noise allows: the centre of the rates is PAIR_RATE times it.
        centre: another centre (a function of the problem), where the rate is not in units of a gradient step.
        axes: 1: a rate; 2: the early block's rate, and the late block's as a ratio to it.
        rate_of: the method whose tuned rate is taken over, where two are one algorithm.
        base: whether it is one that others are compared with (MeZO, SPSA, one-sided, FZOO, AdamW).
        lora: whether LoRA adapters are trained, and put into the model first.
    """

    make: Make
    directions: int = 1
    centre: Callable[[Problem, float], float] | None = None
    axes: int = 1
    rate_of: str | None = None
    base: bool = False
    lora: bool = False


def falling(rate: float, problem: Problem) -> Callable[[int], float]:
    """Linear, from `rate` to nothing when the budget is spent."""
    return lambda step: rate * max(0.0, 1.0 - problem.spent)


def zo(rule: Rule, boundaries: Sequence[float] = (), per_example: bool = False, falls: bool = False) -> Make:
    def make(problem: Problem, rates: Sequence[float], seed: int) -> Stepper:
        blocks = bz.Blocks(problem.model, list(boundaries))
        lr = falling(rates[0], problem) if falls else rates[0] if len(rates) == 1 else list(rates)
        return bz.ZO(
            problem.model, problem.loss_fn, rule, blocks=blocks, lr=lr, eps=EPS, seed=seed, per_example=per_example
        )

    return make


class Eager:
    """Eager MeZO with its forwards' FLOPs looked up by batch shape, so that counting costs it next to no time."""

    def __init__(self, problem: Problem, lr: float, seed: int) -> None:
        self.problem = problem
        self.mezo = EagerMeZO(problem.model, problem.loss_fn, lr, EPS, seed)
        for step in range(problem.order.per_epoch):
            plain_flops(problem, problem.batch(step))

    def step(self, batch: Any) -> Counted:
        result = self.mezo.step(batch)
        return Counted(result.forwards * plain_flops(self.problem, batch), result.forwards)


def _eager(problem: Problem, rates: Sequence[float], seed: int) -> Stepper:
    return Eager(problem, rates[0], seed)


def _auto(per_example: bool) -> Make:
    def make(problem: Problem, rates: Sequence[float], seed: int) -> Stepper:
        # the planner sets a rate for each block; what is tuned is a factor on them
        return bz.ZO(
            problem.model,
            problem.loss_fn,
            method="auto",
            lr=rates[0],
            eps=EPS,
            seed=seed,
            per_example=per_example,
        )

    return make


def _adamw(problem: Problem, rates: Sequence[float], seed: int) -> Stepper:
    return AdamW(problem, rates[0])


def _at(rate: float) -> Callable[[Problem, float], float]:
    return lambda problem, pair_rate: rate


def on_lora(make: Make, rate: float, base: bool = True) -> Entry:
    """A method on LoRA adapters alone; `rate`: the centre of its rates."""

    def on_adapters(problem: Problem, rates: Sequence[float], seed: int) -> Stepper:
        add_adapters(problem, seed)
        return make(problem, rates, seed)

    return Entry(on_adapters, centre=_at(rate), base=base, lora=True)


def _fzoo_centre(problem: Problem, pair_rate: float) -> float:
    """FZOO divides by the moved losses' deviation: its centre is a one-sided method's times that deviation at the start."""
    result = bz.ZO(problem.model, problem.loss_fn, bz.OneSided(8), lr=0.0, eps=EPS, seed=0).estimate(problem.batch(0))
    moved = result.losses[1:]
    mean = sum(moved) / len(moved)
    deviation = (sum((loss - mean) ** 2 for loss in moved) / (len(moved) - 1)) ** 0.5
    # one digit: the deviation's last bits depend on the machine, the grid must not
    return float(f"{8 * pair_rate * deviation:.0e}")


METHODS: dict[str, Entry] = {
    "eager-mezo": Entry(_eager, rate_of="mezo", base=True),
    "mezo": Entry(zo(bz.MeZO()), base=True),
    "n-spsa": Entry(zo(bz.SPSA(4)), directions=4, base=True),
    "one-sided": Entry(zo(bz.OneSided(5)), directions=5, base=True),
    "n-spsa-falling": Entry(zo(bz.SPSA(4), falls=True), directions=4, base=True),
    "one-sided-falling": Entry(zo(bz.OneSided(5), falls=True), directions=5, base=True),
    "fzoo": Entry(zo(bz.FZOO(8)), directions=8, centre=_fzoo_centre, base=True),
    "spzo-coupled": Entry(zo(bz.SPZO(1, 4, "coupled"), [0.5])),
    "spzo-crossed": Entry(zo(bz.SPZO(1, 4, "crossed"), [0.5])),
    "spzo-decoupled": Entry(zo(bz.SPZO(1, 4, "decoupled"), [0.5])),
    "spzo-decoupled-rates": Entry(zo(bz.SPZO(1, 4, "decoupled"), [0.5]), axes=2),
    "one-sided-own": Entry(zo(bz.OneSided(4), per_example=True), directions=5),
    "auto": Entry(_auto(per_example=False), centre=_at(1.0)),
    "auto-own": Entry(_auto(per_example=True), centre=_at(1.0)),
    "n-spsa-lora": on_lora(zo(bz.SPSA(4)), 1e-3),
    "one-sided-lora": on_lora(zo(bz.OneSided(5)), 1e-3),
    "auto-lora": on_lora(_auto(per_example=False), 1.0, base=False),
    "adamw": Entry(_adamw, centre=_at(2e-5), base=True),
    "adamw-lora": on_lora(_adamw, 5e-4),
}


def rates_at(method: str, place: Sequence[int], centre: float) -> list[float]:
    """Rates at a place of the grid: one step is FACTOR on the rate, or RATIOS on the ratio of late to early."""
    early = centre * FACTOR ** place[0]
    if METHODS[method].axes == 1:
        return [early]
    # the late block has four directions to the early one's one
    return [early, early * RATIOS ** (1 + place[1])]


def centre(method: str, model: str, problem: Callable[[], Problem]) -> float:
    entry = METHODS[method]
    pair_rate = PAIR_RATE.get(model, 1e-6)
    found = entry.directions * pair_rate if entry.centre is None else entry.centre(problem(), pair_rate)
    # as the first run's key will say it, from which later runs are reckoned
    return numbers(text([found]))[0]


def text(rates: Sequence[float]) -> str:
    return "|".join(f"{rate:.3g}" for rate in rates)


def numbers(rates: str) -> list[float]:
    return [float(rate) for rate in rates.split("|")]
