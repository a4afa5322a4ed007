"""Rounds that a planner plans (`method="auto"`): every participant has one of its own, and all come to the same plan.

What a planner decides follows from the costs of the blocks, which stand in the run's settings, and from the records so far
(docs/planner.md). A reply holds the losses of the planned evaluations and a mark of the plan, so that a client whose planner came
to another plan is refused by name. The record holds the means of these losses, from which all planners go on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from blockzo.federated.protocol.addresses import noise_seed
from blockzo.federated.protocol.auto import auto_of
from blockzo.federated.protocol.combine import Contribution, weights_of
from blockzo.federated.protocol.messages import Reply
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.journal.record import BlockUpdate, Record, check_record, float32
from blockzo.methods.auto import StepPlan
from blockzo.methods.planner import Planner


class RoundPlanner:
    """Plans the rounds of a run; `position`: records that it has seen."""

    def __init__(self, settings: RunSettings) -> None:
        auto, whole = auto_of(settings.method)
        assert isinstance(auto.costs, tuple)
        self.settings, self.position = settings, 0
        self.planner = Planner(auto, auto.costs, [count > 0 for count in settings.directions], settings.eps, whole)

    def plan(self, number: int) -> StepPlan:
        """Of the next round."""
        if number != self.position:
            raise ValueError(
                f"a plan of round {number} after {self.position} records; expected one for each round before it"
            )
        rates = self.settings.rates(number)
        return self.planner.plan(number, lambda step: noise_seed(self.settings, step), rates)

    def observe(self, records: Sequence[Record]) -> None:
        """Learns from the next records.

        Raises:
            ValueError: they are not those that follow, or no planner led to them.
        """
        for record in records:
            if record.step != self.position:
                raise ValueError(f"the record of round {record.step} after {self.position} records")
            plan = self.plan(record.step)
            leaves = plan.method.tree(self.settings.blocks).leaves
            found = [len(block.directions) for block in record.blocks]
            if found != list(plan.method.tree(self.settings.blocks).directions) or len(record.losses) != leaves:
                raise ValueError(
                    f"the record of round {record.step} has {found} directions and {len(record.losses)} losses; this planner "
                    f"comes to {plan.method} and {leaves}"
                )
            self.planner.observe(record)
            self.position += 1

    def record(self, number: int, replies: Sequence[Reply]) -> tuple[Record, int]:
        """What all replies of a round say together, and the rows behind it. Does not depend on their order."""
        settings, plan = self.settings, self.plan(number)
        given = [Contribution(reply.scalars, reply.examples, reply.loss) for reply in replies]
        shares = weights_of(given, settings)
        every = zip(*(c.scalars for c in given), strict=True)
        losses = tuple(
            float32(math.fsum(share * loss for share, loss in zip(shares, one, strict=True))) for one in every
        )
        scalars = self.planner.scalars(plan.method.scalars(losses, plan.eps), plan)
        updates = tuple(
            BlockUpdate(
                tuple(found),
                tuple(float32(plan.rates[block] * s) + 0.0 for s in found.values()),
                lr=plan.rates[block],
                eps=plan.eps[block],
                decay=plan.rates[block] * settings.weight_decay if found else 0.0,
                distribution=settings.distributions[block],
            )
            for block, found in enumerate(scalars)
        )
        record = Record(
            number,
            plan.seed,
            settings.distributions[0],
            updates,
            losses,
            stochastic_rounding=settings.stochastic_rounding,
            rank=settings.rank,
        )
        return check_record(record), sum(c.examples for c in given)


def mark_of(plan: StepPlan) -> int:
    """32 bits that tell what is evaluated; the rates, which another machine may round otherwise, are the server's."""
    text = repr((plan.method.describe(), plan.eps, plan.seed))
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4, person=b"bz-plan").digest(), "little")


def problem_of_losses(reply: Reply, plan: StepPlan, settings: RunSettings, policy: RoundPolicy) -> str | None:
    """Why a reply cannot be taken in a planned round, or None."""
    if not 0 < reply.examples <= policy.most_examples:
        return f"{reply.examples} examples; expected 1 to {policy.most_examples}"
    if reply.plan != mark_of(plan):
        return "losses of another plan than the run's: this client's planner came to another one (other records or arithmetic?)"
    leaves = plan.method.tree(settings.blocks).leaves
    if len(reply.scalars) != leaves:
        return f"{len(reply.scalars)} losses; the plan of this round has {leaves}"
    if not all(abs(loss) <= LARGEST_LOSS for loss in (reply.loss, *reply.scalars)):
        return "a loss is not finite, or absurd"
    most = policy.largest_loss_change
    if max(reply.scalars) - min(reply.scalars) > 2 * most:
        return f"losses from {min(reply.scalars):g} to {max(reply.scalars):g}; no change of the loss is above {most:g}"
    return None


LARGEST_LOSS = 1e6
