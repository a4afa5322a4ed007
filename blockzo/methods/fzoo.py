"""Forward differences divided by the deviation of their losses: FZOO (arXiv 2506.09034)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.methods.base import Method, Scalars, positive, registered
from blockzo.methods.tree import EvaluationTree
from blockzo.methods.whole import OneSided


@registered
@dataclass(frozen=True)
class FZOO(Method):
    """One-sided with the estimate divided by the standard deviation of the moved losses (two or more directions).

    The deviation has the floor `1e-6 * (1 + |l0|)`, a few float32 roundings of a loss: below it the differences are rounding.
    """

    option: ClassVar[str] = "fzoo"
    summary: ClassVar[str] = "forward differences over the deviation of their losses (arXiv 2506.09034)"
    options: ClassVar[tuple[str, ...]] = ("directions",)
    linear: ClassVar[bool] = False

    directions: int = 8

    def __post_init__(self) -> None:
        positive(directions=self.directions)
        if self.directions < 2:
            raise ValueError(f"directions is {self.directions}; FZOO needs two or more for a standard deviation")

    def tree(self, blocks: int) -> EvaluationTree:
        return OneSided(self.directions).tree(blocks)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        moved = losses[1:]
        mean = math.fsum(moved) / len(moved)
        deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in moved) / (len(moved) - 1))
        return self._divided(losses, eps, deviation, losses[0])

    def of_examples(self, losses: Sequence[Sequence[float]], eps: Sequence[float]) -> list[Scalars]:
        """One deviation for all examples, that of their differences from their own unmoved losses."""
        differences = [loss - own[0] for own in losses for loss in own[1:]]
        mean = math.fsum(differences) / len(differences)
        deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (len(differences) - 1))
        base = math.fsum(own[0] for own in losses) / len(losses)
        return [self._divided(own, eps, deviation, base) for own in losses]

    def _divided(self, losses: Sequence[float], eps: Sequence[float], deviation: float, base: float) -> Scalars:
        scale = max(deviation, 1e-6 * (1.0 + abs(base)))
        plain = OneSided(self.directions).scalars(losses, eps)
        return [{k: s / scale for k, s in block.items()} for block in plain]

    def evaluations(self, blocks: int) -> float:
        return 2.0 * self.directions

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        return [cls(3)]
