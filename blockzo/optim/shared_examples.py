"""Ranks of `DistributedZO` whose examples have directions of their own: whose numbers are whose, and what all find together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from blockzo.optim.evaluation import Evaluation
from blockzo.optim.examples import apart
from blockzo.optim.micro_batches import Part, Weight, mean_losses
from blockzo.optim.ranks import Ranks


@dataclass
class SharedExamples:
    """The examples of one step: those of rank 0 come first, then those of rank 1, as if one process had all their micro-batches.

    Attributes:
        by_rows: every rank has examples of its own; else all have the same ones, and leaves of their own.
        counts: examples of every rank. weights: shares of this rank's examples in the loss of all ranks.
    """

    ranks: Ranks
    by_rows: bool
    counts: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def meet(self, parts: Sequence[Part], weight: Weight, rows: float) -> Exception | None:
        """Every rank says how many examples it has, one that failed too; the error of this one.

        Args:
            rows: weight of this rank's losses; 0 where it has none.
        """
        failed: Exception | None = None
        found = []
        # one loss that stands for itself on a rank is one of several micro-batches of the step
        parts = [Part(parts[0].batch, rows)] if self.by_rows and len(parts) == 1 else parts
        try:
            found = [taken for taken in apart(parts, weight, 1.0) if taken.kept] if rows else []
        except Exception as error:
            failed = error
        every = self.ranks.gather([float(sum(len(taken.kept) for taken in found)), rows])
        self.counts = [int(count) for count, _ in every]
        whole = math.fsum(row[1] for row in every) if self.by_rows else math.fsum(part.weight for part in parts)
        self.weights = [own / whole for taken in found for own in taken.weights]
        return failed

    def numbers(self, own: Sequence[Sequence[int]]) -> list[list[int]]:
        """Of each block, numbers k n + b of this rank's n examples -> those among the examples of all ranks."""
        if not self.by_rows:
            return [list(block) for block in own]
        mine, total = self.counts[self.ranks.rank], sum(self.counts)
        before = sum(self.counts[: self.ranks.rank])
        return [[k // mine * total + before + k % mine for k in block] for block in own]

    def packed(self, own: Evaluation, leaves: int) -> list[float]:
        """What this rank gives: share and losses of each example, as many numbers on every rank."""
        losses = own.examples[0] if own.examples is not None else []
        found: list[float] = []
        for place in range(max(self.counts)):
            found.append(self.weights[place] if place < len(self.weights) else 0.0)
            mine = losses[place] if place < len(losses) else []
            found += [*mine, *[0.0] * (leaves - len(mine))]
        return found

    def join(
        self, result: Evaluation, every: Sequence[Sequence[float]], leaves: int, spans: Sequence[tuple[int, int]]
    ) -> None:
        """Losses of all examples, and of the step, from what every rank gave.

        Args:
            spans: leaves of every rank, where all have the same examples.
        """
        step = 1 + leaves
        of_ranks = [
            [row[place * step : (place + 1) * step] for place in range(count)]
            for row, count in zip(every, self.counts, strict=True)
        ]
        if self.by_rows:
            weights = [example[0] for found in of_ranks for example in found]
            losses = [list(example[1:]) for found in of_ranks for example in found]
        else:
            weights = [example[0] for example in of_ranks[0]]
            losses = [
                [
                    loss
                    for (first, stop), example in zip(spans, found, strict=True)
                    for loss in example[1 : 1 + stop - first]
                ]
                for found in zip(*of_ranks, strict=True)
            ]
        result.examples = losses, weights
        result.losses = mean_losses(losses, weights)
