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
from collections.abc import Sequence

from blockzo.journal.record import Record
from blockzo.methods.auto import Auto, SeedOf, StepPlan, planned_method
from blockzo.methods.base import Scalars
from blockzo.methods.block_state import PROBE, WASTE, BlockState, share, worth
from blockzo.methods.decoupled import Decoupled, slopes_and_curvatures
from blockzo.methods.guard import Guard

OWN_CLIP = 1.5
"""How much later scalars of single examples are cut: examples differ."""


class Planner:
    """Decides steps and learns from their records.

    Args:
        costs: of one run of each block, in any unit; only their ratios matter.
        trainable: whether each block has weights to move.
        eps: of each block, to begin with.
        whole: every loss costs a run of all blocks, since nothing can be kept (`Reuse`).
        own: steps may move every example along directions of its own.
    """

    def __init__(
        self,
        settings: Auto,
        costs: Sequence[float],
        trainable: Sequence[bool],
        eps: Sequence[float],
        whole: bool = False,
        own: bool = False,
    ) -> None:
        self.settings, self.costs, self.first_eps = settings, list(costs), list(eps)
        self.whole, self.own = whole, own
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
            rate = self.guard.factor * self.blocks[block].rate(count, scale[block], batches=2)
            return self._move(block, count, self._pending.seed, rate, centre=True, eps=eps)
        unseen = [block for block in self.order if not self.blocks[block].probes]
        # of blocks that are unknown the last one, the cheapest, is asked first
        if len(unseen) == len(self.order) or self.probed < self.settings.explore * self.spent:
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
        gains = [math.log(self.blocks[b].measured_gain) for b in self._seen if self.blocks[b].own.weight]
        common = share([self.blocks[b].looks for b in self._seen])
        for block in self.order:
            self.blocks[block].usual, self.blocks[block].usual_share = usual, common
            self.blocks[block].usual_gain = math.exp(math.fsum(gains) / len(gains)) if gains else 1.0

    def observe(self, record: Record) -> None:
        """Learns from a record that `plan` led to."""
        self._learn(record)
        self._compare()

    def _learn(self, record: Record) -> None:
        block = self._block(record)
        state, update = self.blocks[block], record.blocks[block]
        count, losses = planned_method(record).directions[block], record.losses
        cost = self._cost(block, len(losses))
        self.spent += cost
        # the first of an odd number is the unmoved loss; pairs lie around it
        self.guard.add(losses[0] if len(losses) != 2 * count else math.fsum(losses) / len(losses))
        if len(losses) == 2 * count + 1:
            due = block == self.order[self.turn % len(self.order)]
            if due or not state.probes:
                # a look at the block in use again is not a visit to the others
                self.probed += cost
            self._observe_probe(state, record, block, due)
            return
        state.since, state.paid = state.since + 1, state.paid + cost
        if len(update.directions) > count:
            if update.lr:
                # scalars hold an example's share in the loss and 1 / count
                own = count * math.fsum((c / update.lr) ** 2 for c in update.coefficients)
                state.examples(own, self.settings.step_weight)
            return
        if len(losses) == 2 * count:
            slopes = [(a - b) / (2 * update.eps) for a, b in zip(losses[::2], losses[1::2], strict=True)]
            bias = 0.0
        else:
            slopes = [(loss - losses[0]) / update.eps for loss in losses[1:]]
            bias = state.squared.value * update.eps**2 / 4
        energy = sum(s * s for s in slopes) / count - bias
        state.energy.add(max(energy, 0.0), max(self.settings.step_weight, worth(count)))

    def _observe_probe(self, state: BlockState, record: Record, block: int, due: bool) -> None:
        values = _measured(record, block)
        count = len(values)
        for slope, curvature in values:
            state.energy.add(slope * slope, max(0.5, worth(count)) / count)
            state.plain.add(curvature, 0.5)
            state.squared.add(curvature * curvature, 0.5)
            state.along.add(slope * slope * curvature, 0.5)
            state.weight.add(slope * slope, 0.5)
        if self._pending is None:
            self._pending = record
            return
        before = _measured(self._pending, block)
        state.confirm([slope for slope, _ in before], [slope for slope, _ in values])
        self._pending = None
        if due and all(self.blocks[b].probes for b in self.order):
            self.turn += 1

    def scalars(self, found: Scalars, plan: StepPlan) -> Scalars:
        """What is applied: the mean over both batches of a probe; cut where a scalar lies far beyond what is likely."""
        block = next(b for b, scalars in enumerate(found) if scalars)
        scalars, state = found[block], self.blocks[block]
        if self._pending is not None:
            before = [slope / len(scalars) for slope, _ in _measured(self._pending, block)]
            scalars = {k: (s + before[k]) / 2 for k, s in scalars.items()}
        limit = self.settings.clip * math.sqrt(state.energy.value) / len(scalars)
        if plan.own:
            # examples differ, too; sum of squares over all of them: energy / gain
            assert isinstance(plan.method, Decoupled)
            spread = len(scalars) * plan.method.directions[block] * state.gain
            limit = OWN_CLIP * self.settings.clip * math.sqrt(state.energy.value / spread)
        if limit > 0:
            scalars = {k: max(-limit, min(limit, s)) for k, s in scalars.items()}
        return [scalars if b == block else {} for b in range(len(found))]

    def _probe(self, block: int, seed: int, count: int = 0) -> StepPlan:
        """Where no count is given, as many directions as cost little beside the blocks before."""
        before, after = self._parts(block)
        count = count or min(self.settings.most, PROBE + int(before / (4 * after)))
        return self._move(block, count, seed, 0.0, centre=True)

    def _best(self, seed: int, scale: Sequence[float]) -> StepPlan:
        best: tuple[float, int, int, bool, bool] | None = None
        for block in self._seen:
            state = self.blocks[block]
            noise = self._eps(block) ** 2 * state.squared.value / 4
            count = 1
            while count <= self.settings.most:
                for one_sided, own in self._forms(count):
                    energy = state.energy.value / (state.gain if own else 1.0)
                    gain = state.decrease(count * state.gain if own else count)
                    if one_sided:
                        gain *= energy / max(energy + noise, 1e-30)
                    value = gain / self._cost(block, count + 1 if one_sided else 2 * count)
                    if best is None or value > best[0]:
                        best = (value, block, count, one_sided, own)
                count *= 2
        assert best is not None
        _, block, count, one_sided, own = best
        state = self.blocks[block]
        if not state.known:
            return self._probe(block, seed)
        # looks win 1 / (1 + rho) of what steps do; what is lost by that may be a tenth
        if WASTE * (1 + state.confidence) / state.confidence * state.paid >= 2 * self._cost(block, 2 * count + 1):
            return self._probe(block, seed, count)
        rate = self.guard.factor * state.rate(count * state.gain if own else count, scale[block])
        return self._move(block, count, seed, rate, one_sided=one_sided, own=own)

    def _forms(self, count: int) -> list[tuple[bool, bool]]:
        """(one-sided, own) of a step along so many directions; of equal ones the first is taken, which tells what is not known.
        The sides of examples' own follow from the count, so that a record says what it is (`planned_method`).
        """
        shared = [(False, False), (True, False)] if count > 1 else [(False, False)]
        return [(count > 1, True), *shared] if self.own else shared

    def _move(
        self,
        block: int,
        count: int,
        seed: int,
        rate: float,
        one_sided: bool = False,
        centre: bool = False,
        eps: tuple[float, ...] | None = None,
        own: bool = False,
    ) -> StepPlan:
        every = range(len(self.blocks))
        method = Decoupled(tuple(count if b == block else 0 for b in every), one_sided, centre)
        rates = tuple(rate if b == block else 0.0 for b in every)
        return StepPlan(method, rates, eps or tuple(self._eps(b) for b in every), seed, own)

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


def _measured(probe: Record, block: int) -> list[tuple[float, float]]:
    return slopes_and_curvatures(probe.losses, probe.blocks[block].eps)
