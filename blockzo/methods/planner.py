"""Which block to move next, along how many directions, how far: measured while training (docs/planner.md).

Every step moves one block. Moving block b along P directions lowers the loss by about

    D = rho^2 E P / (2 (T + (P - 1) S)),   at the rate   rho P / (T + (P - 1) S),

E = mean square of its scalars (the energy of its gradient on a batch), T = curvature along single directions, S = along the
gradient, rho = share of E that a second batch confirms. The step that lowers the loss most per unit of cost is taken; the cost of
a step is that of the blocks before b once and of the rest for every loss. A share of the cost goes to probes, which
visit the blocks in turn: directions evaluated on two batches in a row, with the unmoved loss, give E, T, S and rho.

All of it follows from the costs of the blocks and the records so far, so a resumed run decides as one that was not stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from blockzo.journal.record import Record
from blockzo.methods.estimators import Decoupled, Method, Scalars
from blockzo.perturb.blocks import Blocks

SeedOf = Callable[[int], int]
"""Number of a step -> its seed."""


@dataclass(frozen=True)
class StepPlan:
    """What one step evaluates and applies: `rates` and `eps` for each block."""

    method: Method
    rates: tuple[float, ...]
    eps: tuple[float, ...]
    seed: int


def planned_method(record: Record) -> Decoupled:
    """The method of a step that was planned."""
    counts = tuple(len(update.directions) for update in record.blocks)
    extra = len(record.losses) - 2 * sum(counts)
    return Decoupled(counts, one_sided=len(record.losses) == 1 + sum(counts) and extra != 0, centre=extra == 1)


@dataclass(frozen=True)
class Auto:
    """Settings of the planner: `ZO(method=Auto(...))`; `method="auto"` is `Auto()`.

    Attributes:
        explore: share of the cost that goes to probes.
        most: largest number of directions in a step.
        memory: number of probes that an average goes back; steps count less (`step_weight`).
        eps_loss: a move changes the loss by about this much by its curvature; eps stays within `eps_range` times the given one.
        caution: share of the best rate that is taken.
        window: steps of a stretch whose mean loss is watched, a quarter and four times as many besides; where it rises, all rates
            are halved.
        costs: of one run of each block, in any unit; measured, in seconds, where None.
        clip: scalars beyond this many root mean squares are cut.
    """

    explore: float = 0.25
    most: int = 32
    memory: float = 8.0
    step_weight: float = 0.25
    eps_loss: float = 0.005
    eps_range: tuple[float, float] = (0.3, 10.0)
    clip: float = 2.0
    caution: float = 0.6
    window: int = 20
    costs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.explore < 1 or self.most < 1 or self.memory < 1 or self.clip <= 0 or self.window < 2:
            raise ValueError(f"{self}: expected 0 < explore < 1, most >= 1, memory >= 1, clip > 0, window >= 2")
        if self.costs is not None and not all(0 < cost < math.inf for cost in self.costs):
            raise ValueError(f"costs is {self.costs}; expected a positive number for each block")

    def describe(self) -> dict[str, object]:
        return {"name": "Auto", **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}}


@dataclass
class Mean:
    """A running mean: plain for the first observations, then exponential."""

    memory: float
    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.weight = min(self.weight + weight, max(self.memory, weight))
        self.value += (value - self.value) * weight / self.weight


@dataclass
class BlockState:
    """What is known of one block; the means go back `memory` probes."""

    memory: float
    caution: float
    energy: Mean = field(init=False)
    squared: Mean = field(init=False)
    plain: Mean = field(init=False)
    along: Mean = field(init=False)
    weight: Mean = field(init=False)
    confirmed: Mean = field(init=False)
    tried: Mean = field(init=False)
    probes: int = 0
    since: int = 0
    usual: float = 0.0

    def __post_init__(self) -> None:
        self.energy = Mean(self.memory)
        # of curvature: itself, its square, its product with the energy of the same direction, and that energy
        self.plain, self.squared, self.along, self.weight = (Mean(2 * self.memory) for _ in range(4))
        self.confirmed, self.tried = Mean(2 * self.memory), Mean(2 * self.memory)

    @property
    def curvature(self) -> float:
        """T; while there are few probes, drawn (its logarithm) to the ratio to the energy that all blocks have in common: the
        block of the lowest T is chosen, which after one probe is the one whose T was found too low by most.
        """
        found = self.measured_curvature
        if self.usual <= 0:
            return found
        prior = math.log(self.usual * max(self.energy.value, 1e-30))
        drawn = math.exp((PRIOR * prior + self.probes * math.log(found)) / (PRIOR + self.probes))
        return max(drawn, self.energy.value, 1e-30)

    @property
    def measured_curvature(self) -> float:
        """E[s^2 c] / E[s^2] with one standard error on top, for it changes sign from direction to direction. Never below the
        energy: near a fit of a log-likelihood the trace of the Hessian is the mean energy of one example's gradient.
        """
        mean = self.along.value / self.weight.value if self.weight.value > 0 else 0.0
        return max(max(mean, 0.0) + self.error, self.energy.value, 1e-30)

    @property
    def error(self) -> float:
        """Standard error of the mean curvature."""
        spread = max(0.0, self.squared.value - self.plain.value**2)
        return math.sqrt(spread / max(1.0, self.squared.weight))

    @property
    def known(self) -> bool:
        """Whether the curvature is known well enough to move by it: the best of many blocks is easily the worst known."""
        enough = self.probes >= MOST_PROBES or (
            self.probes >= LEAST_PROBES and 4 * self.error <= self.measured_curvature
        )
        return enough and self.since < AGAIN

    @property
    def sharpness(self) -> float:
        """S, curvature along the gradient, which averaging over directions does not lower: sqrt(tr H^2) at most, where the
        variance of the curvature along a direction is 2 tr H^2.
        """
        mean = self.plain.value
        found = math.sqrt(max(0.0, self.squared.value - mean * mean) / 2)
        drawn = (PRIOR * self.curvature / 4 + self.probes * found) / (PRIOR + self.probes)
        return min(self.curvature, drawn)

    @property
    def confidence(self) -> float:
        """Share of the energy that another batch confirms, drawn to 1/2 while there are few probes."""
        found = self.confirmed.value / self.tried.value if self.tried.value > 0 else 0.0
        weight = self.confirmed.weight
        return min(1.0, max(0.05, (PRIOR / 2 + found * weight) / (PRIOR + weight)))

    def rate(self, directions: int, factor: float = 1.0) -> float:
        """`caution` times the best rate, less after few probes: scalars and curvature have heavy tails, which few probes do not
        show. A fraction f of the best rate still gives f (2 - f) of the best decrease. `factor` multiplies it up to that fraction
        and not beyond: the best rate is an estimate, and past it steps soon lose more than they win.
        """
        fraction = self.caution * min(1.0, factor * self.probes / (self.probes + LAG))
        return fraction * self.confidence * directions / (self.curvature + (directions - 1) * self.sharpness)

    def decrease(self, directions: int) -> float:
        return self.confidence * self.energy.value * self.rate(directions) / 2


PRIOR = 4.0
"""Probes that a first guess counts for."""
LAG = 3.0
"""Probes after which half of the rate is taken."""
PROBE = 2
"""Directions of a probe at least."""
UNSEEN = 0.5
"""Share of the cost that goes to probes while a block was never visited."""
LEAST_PROBES, MOST_PROBES, AGAIN = 2, 6, 16
"""A block is not moved by fewer probes than the first number, nor by fewer than the second where they disagree on the curvature;
the block in use is looked at again after AGAIN steps."""


STRETCHES: tuple[tuple[float, float], ...] = ((0.25, 4.0), (1.0, 3.0), (4.0, 3.0))
"""Length of a stretch, relative to the guard's, and the standard errors that chance may explain."""


@dataclass
class Guard:
    """Halves all rates when the loss of a stretch of steps lies above the best such stretch by more than chance explains, and
    takes that back by and by as the loss falls again. Short stretches see a collapse at once, long ones a slow drift.

    Curvature is measured seldom and where the weights were; on real models rates that were right become too high.
    """

    length: int
    factor: float = 1.0
    best: list[float | None] = field(default_factory=lambda: [None] * len(STRETCHES))
    losses: list[list[float]] = field(default_factory=lambda: [[] for _ in STRETCHES])
    spread: Mean = field(default_factory=lambda: Mean(8.0))

    def add(self, loss: float) -> None:
        for stretch, (share, errors) in enumerate(STRETCHES):
            length, seen = max(2, round(share * self.length)), self.losses[stretch]
            seen.append(loss)
            if len(seen) < length:
                continue
            mean, best = math.fsum(seen) / length, self.best[stretch]
            if stretch == 0:
                self.spread.add(math.fsum((x - mean) ** 2 for x in seen) / (length - 1))
            seen.clear()
            if best is None or mean < best:
                self.best[stretch] = mean
                if share == 1:
                    self.factor = min(1.0, 1.5 * self.factor)
            elif mean - best > errors * math.sqrt(2 * self.spread.value / length):
                # the next halving needs another rise, or the best of many stretches would be taken for a fall
                self.best[stretch] = mean
                self.factor /= 2


def fine_blocks(model: nn.Module, example: Mapping[str, Any] | None = None) -> Blocks:
    """Embeddings with the first layer, quarters of the rest, the last two layers and what follows them, each a block."""
    try:
        count = len(Blocks(model).layers)
    except ValueError:
        return Blocks(model, [])
    cuts = {1, round(count / 4), round(count / 2), round(3 * count / 4), count - 2, count - 1, count}
    return Blocks(model, sorted(cut for cut in cuts if 1 <= cut <= count), example=example)


class Planner:
    """Decides steps and learns from their records.

    Args:
        costs: of one run of each block, in any unit; only their ratios matter.
        trainable: whether each block has weights to move.
        eps: of each block, to begin with.
        whole: every loss costs a run of all blocks, since nothing can be kept (`Reuse`).
    """

    def __init__(
        self,
        settings: Auto,
        costs: Sequence[float],
        trainable: Sequence[bool],
        eps: Sequence[float],
        whole: bool = False,
    ) -> None:
        self.settings, self.costs, self.first_eps = settings, list(costs), list(eps)
        self.whole = whole
        self.blocks = [BlockState(settings.memory, settings.caution) for _ in costs]
        self.order = [block for block, moves in enumerate(trainable) if moves]
        self.guard = Guard(settings.window)
        self.spent = self.probed = 0.0
        self.turn = 0
        self._pending: Record | None = None

    def plan(self, step: int, seed_of: SeedOf, scale: Sequence[float]) -> StepPlan:
        """The step to take; `scale` of a block multiplies its rate."""
        if self._pending is not None:
            # the same directions on the next batch, applied with the mean of both scalars
            block, eps = self._block(self._pending), tuple(u.eps for u in self._pending.blocks)
            count = len(self._pending.blocks[block].directions)
            rate = self.guard.factor * self.blocks[block].rate(count, scale[block])
            return self._move(block, count, self._pending.seed, rate, centre=True, eps=eps)
        unseen = [block for block in self.order if not self.blocks[block].probes]
        # while a block is unknown half of the cost goes to finding out; the last one, the cheapest, is asked first
        share = UNSEEN if unseen else self.settings.explore
        if len(unseen) == len(self.order) or self.probed < share * self.spent:
            return self._probe(unseen[-1] if unseen else self.order[self.turn % len(self.order)], seed_of(step))
        return self._best(seed_of(step), scale)

    @property
    def _seen(self) -> list[int]:
        return [block for block in self.order if self.blocks[block].probes]

    def _compare(self) -> None:
        """What curvature over energy is usual (geometric mean), for blocks that were seen seldom."""
        if not self._seen:
            return
        ratios = [self.blocks[b].measured_curvature / max(self.blocks[b].energy.value, 1e-30) for b in self._seen]
        usual = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
        for block in self.order:
            self.blocks[block].usual = usual

    def observe(self, record: Record) -> None:
        """Learns from a record that `plan` led to."""
        self._learn(record)
        self._compare()

    def _learn(self, record: Record) -> None:
        block = self._block(record)
        state, update = self.blocks[block], record.blocks[block]
        count, losses = len(update.directions), record.losses
        cost = self._cost(block, len(losses))
        self.spent += cost
        # the first of an odd number is the unmoved loss; pairs lie around it
        self.guard.add(losses[0] if len(losses) != 2 * count else math.fsum(losses) / len(losses))
        if len(losses) == 2 * count + 1:
            # a look at the block in use again is not a visit to the others
            if state.since < AGAIN:
                self.probed += cost
            self._observe_probe(state, record, block)
            return
        state.since += 1
        if len(losses) == 2 * count:
            slopes = [(a - b) / (2 * update.eps) for a, b in zip(losses[::2], losses[1::2], strict=True)]
            bias = 0.0
        else:
            slopes = [(loss - losses[0]) / update.eps for loss in losses[1:]]
            bias = state.squared.value * update.eps**2 / 4
        energy = sum(s * s for s in slopes) / count - bias
        state.energy.add(max(energy, 0.0), self.settings.step_weight)

    def _observe_probe(self, state: BlockState, record: Record, block: int) -> None:
        values = self._probe_values(record, block)
        for slope, curvature in values:
            state.energy.add(slope * slope, 0.5 / len(values))
            state.plain.add(curvature, 0.5)
            state.squared.add(curvature * curvature, 0.5)
            state.along.add(slope * slope * curvature, 0.5)
            state.weight.add(slope * slope, 0.5)
        if self._pending is None:
            self._pending = record
            return
        for (first, _), (second, _) in zip(self._probe_values(self._pending, block), values, strict=True):
            state.confirmed.add(first * second, 1 / len(values))
            state.tried.add((first * first + second * second) / 2, 1 / len(values))
        state.probes, state.since = state.probes + 1, 0
        self._pending = None
        if all(self.blocks[b].probes for b in self.order):
            self.turn += 1

    def _probe_values(self, record: Record, block: int) -> list[tuple[float, float]]:
        """Slope and curvature along every direction of a probe."""
        centre, *moved = record.losses
        eps = record.blocks[block].eps
        pairs = zip(moved[::2], moved[1::2], strict=True)
        return [((a - b) / (2 * eps), (a + b - 2 * centre) / eps**2) for a, b in pairs]

    def scalars(self, found: Scalars) -> Scalars:
        """What is applied: the mean over both batches of a probe; cut where a scalar lies far beyond what is likely."""
        block = next(b for b, scalars in enumerate(found) if scalars)
        scalars = found[block]
        if self._pending is not None:
            before = [slope / len(scalars) for slope, _ in self._probe_values(self._pending, block)]
            scalars = {k: (s + before[k]) / 2 for k, s in scalars.items()}
        limit = self.settings.clip * math.sqrt(self.blocks[block].energy.value) / len(scalars)
        if limit > 0:
            scalars = {k: max(-limit, min(limit, s)) for k, s in scalars.items()}
        return [scalars if b == block else {} for b in range(len(found))]

    def _probe(self, block: int, seed: int) -> StepPlan:
        """As many directions as cost little beside the blocks before."""
        before, after = self._parts(block)
        count = min(self.settings.most, PROBE + int(before / (4 * after)))
        return self._move(block, count, seed, 0.0, centre=True)

    def _best(self, seed: int, scale: Sequence[float]) -> StepPlan:
        best: tuple[float, int, int, bool] | None = None
        for block in self._seen:
            state = self.blocks[block]
            count = 1
            while count <= self.settings.most:
                noise = self._eps(block) ** 2 * state.squared.value / 4
                for one_sided in (False, True) if count > 1 else (False,):
                    gain = state.decrease(count)
                    if one_sided:
                        gain *= state.energy.value / max(state.energy.value + noise, 1e-30)
                    value = gain / self._cost(block, count + 1 if one_sided else 2 * count)
                    if best is None or value > best[0]:
                        best = (value, block, count, one_sided)
                count *= 2
        assert best is not None
        _, block, count, one_sided = best
        state = self.blocks[block]
        if not state.known:
            return self._probe(block, seed)
        rate = self.guard.factor * self.blocks[block].rate(count, scale[block])
        return self._move(block, count, seed, rate, one_sided=one_sided)

    def _move(
        self,
        block: int,
        count: int,
        seed: int,
        rate: float,
        one_sided: bool = False,
        centre: bool = False,
        eps: tuple[float, ...] | None = None,
    ) -> StepPlan:
        every = range(len(self.blocks))
        method = Decoupled(tuple(count if b == block else 0 for b in every), one_sided, centre)
        rates = tuple(rate if b == block else 0.0 for b in every)
        return StepPlan(method, rates, eps or tuple(self._eps(b) for b in every), seed)

    def _eps(self, block: int) -> float:
        first = self.first_eps[block]
        if not self.blocks[block].probes:
            return first
        low, high = self.settings.eps_range
        wanted = math.sqrt(2 * self.settings.eps_loss / math.sqrt(self.blocks[block].squared.value or 1e-30))
        factor = 2.0 ** round(math.log2(wanted / first))
        return first * min(high, max(low, factor))

    def _parts(self, block: int) -> tuple[float, float]:
        """Cost of what runs once before a moved block, and of what runs for every loss."""
        before = 0.0 if self.whole else sum(self.costs[:block])
        return before, sum(self.costs) - before

    def _cost(self, block: int, losses: int) -> float:
        before, after = self._parts(block)
        return before + losses * after

    @staticmethod
    def _block(record: Record) -> int:
        return next(block for block, update in enumerate(record.blocks) if update.directions)
