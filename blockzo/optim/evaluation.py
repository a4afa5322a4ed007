"""What the evaluation of a tree gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

from blockzo.methods.tree import BlockMove
from blockzo.optim.micro_batches import Sum, mean_losses, weighted_sums
from blockzo.perturb import PerturbedForward


class Evaluation:
    """What one tree gave: `losses` of the leaves in order, forward `flops`, and ids of the parameters that were `used`.

    `kept_bytes`: activations kept between blocks, at most at once. `sums`: of micro-batches, weighted losses before the division.
    `examples`: where each has directions of its own: losses (examples x leaves) and shares in the loss of all.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.sums: list[Sum] = []
        self.examples: tuple[list[list[float]], list[float]] | None = None
        self.flops = self.kept_bytes = 0
        self.used: set[int] = set()

    def count(self, mode: PerturbedForward) -> None:
        self.flops += mode.flops
        self.used |= mode.used


def joined(every: Sequence[Evaluation], weights: Sequence[float]) -> Evaluation:
    """Of the parts of a batch: losses are their weighted means."""
    result = Evaluation()
    losses = [part.losses for part in every]
    result.losses = mean_losses(losses, weights)
    result.sums = weighted_sums(losses, weights) if len(every) > 1 else []
    result.flops = sum(part.flops for part in every)
    result.kept_bytes = max(part.kept_bytes for part in every)
    result.used = set().union(*(part.used for part in every))
    return result


def check_loss(loss: float, moves: Sequence[BlockMove | None]) -> float:
    if not math.isfinite(loss):
        where = ", ".join(f"block {m.block} direction {m.direction} sign {m.sign:+d}" for m in moves if m is not None)
        raise ValueError(
            f"the loss is {loss} at {where or 'unmoved weights'}; expected a finite number. The step was not applied: "
            "lower eps or the learning rate, or look at the batch"
        )
    return loss
