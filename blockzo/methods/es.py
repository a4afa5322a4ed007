"""Evolution strategies: no unmoved loss, every direction against the others of its step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.methods.base import Method, Scalars, positive, registered
from blockzo.methods.tree import BlockMove, EvaluationTree, Node


@registered
@dataclass(frozen=True)
class ES(Method):
    """`directions` losses on one side, each against the mean of the others (Salimans et al., arXiv 1703.03864; the baseline that
    leaves one out is that of Kool et al., 2019): s_i = (l_i - mean of l_j, j not i) / (eps n). Unbiased, as z_i is not in them.
    """

    option: ClassVar[str] = "es"
    summary: ClassVar[str] = "one side alone, each loss against the mean of the others (arXiv 1703.03864)"
    options: ClassVar[tuple[str, ...]] = ("directions",)

    directions: int = 8

    def __post_init__(self) -> None:
        positive(directions=self.directions)
        if self.directions < 2:
            raise ValueError(f"directions is {self.directions}; ES compares them with each other: expected two or more")

    def tree(self, blocks: int) -> EvaluationTree:
        every = range(blocks)
        return EvaluationTree(
            blocks,
            tuple(Node(0, blocks, tuple(BlockMove(b, k, 1) for b in every)) for k in range(self.directions)),
        )

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        count, mean = self.directions, math.fsum(losses) / self.directions
        # l_i less the mean of the others is n / (n - 1) of l_i less the mean of all
        return [{k: (loss - mean) / ((count - 1) * size) for k, loss in enumerate(losses)} for size in eps]

    def evaluations(self, blocks: int) -> float:
        return float(self.directions)

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        return [cls(3)]
