"""Split perturbations of a model in two blocks: SPZO (Ahmed et al., arXiv 2502.10239).

Its pairings are derived in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.methods.base import Method, Scalars, positive, registered
from blockzo.methods.decoupled import Decoupled
from blockzo.methods.levels import Tree
from blockzo.methods.tree import EvaluationTree


@registered
@dataclass(frozen=True)
class SPZO(Method):
    """Split perturbations of a two-block model: `outer` directions of block 1, `inner` of block 2 for each of them.

    Variants ("Update" and variances: docs/methods.md):
        coupled: both signs of a block-1 direction keep their activations; each feeds `inner` block-2 directions of its sign.
        crossed: all four sign pairs; each block's scalar is free of the other's noise to first order.
        decoupled: outer * inner pairs of block 2 on the unmoved block 1, run once; `outer` pairs of block 1 alone.

    Args:
        one_sided: coupled, decoupled: sign + only, against one unmoved loss.
    """

    option: ClassVar[str] = "spzo"
    summary: ClassVar[str] = "split perturbations of two blocks (arXiv 2502.10239)"
    options: ClassVar[tuple[str, ...]] = ("outer", "inner", "variant", "one_sided")
    blocks: ClassVar[int | None] = 2

    outer: int = 1
    inner: int = 4
    variant: str = "coupled"
    one_sided: bool = False

    def __post_init__(self) -> None:
        positive(outer=self.outer, inner=self.inner)
        if self.variant not in ("coupled", "crossed", "decoupled"):
            raise ValueError(f"variant is {self.variant!r}; expected coupled, crossed or decoupled")
        if self.one_sided and self.variant == "crossed":
            raise ValueError("a one-sided evaluation has only the sign +, crossed needs both; use coupled or decoupled")

    def tree(self, blocks: int) -> EvaluationTree:
        if blocks != 2:
            raise ValueError(
                f"SPZO splits a model in two, this one has {blocks} block(s); expected one boundary (or Tree, Decoupled)"
            )
        return self._general.tree(2)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        return self._general.scalars(losses, eps)

    @property
    def _general(self) -> Tree | Decoupled:
        if self.variant == "decoupled":
            return Decoupled((self.outer, self.outer * self.inner), self.one_sided)
        return Tree((self.outer, self.inner), self.one_sided, self.variant)

    def evaluations(self, blocks: int) -> float:
        return 4.0 * self.outer * (self.inner + 1)

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        if blocks != 2:
            return []
        found: list[Method] = [cls(2, 3, variant) for variant in ("coupled", "crossed", "decoupled")]
        return [*found, cls(1, 2, one_sided=True), cls(1, 2, "decoupled", one_sided=True)]
