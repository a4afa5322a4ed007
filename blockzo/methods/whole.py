"""All blocks moved together: MeZO (Malladi et al., arXiv 2305.17333), SPSA (Spall 1992), forward differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.methods.base import Method, Scalars, positive, registered
from blockzo.methods.levels import Tree
from blockzo.methods.tree import EvaluationTree


@dataclass(frozen=True)
class Whole(Method):
    """All blocks are moved together: the coupled tree with one direction a block under each of the first."""

    options: ClassVar[tuple[str, ...]] = ("directions",)

    directions: int = 1
    _one_sided: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(directions=self.directions)

    def _levels(self, blocks: int) -> Tree:
        return Tree((self.directions, *[1] * (blocks - 1)), self._one_sided)

    def tree(self, blocks: int) -> EvaluationTree:
        return self._levels(blocks).tree(blocks)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        return self._levels(len(eps)).scalars(losses, eps)

    def evaluations(self, blocks: int) -> float:
        return 2.0 * self.directions


@registered
@dataclass(frozen=True)
class MeZO(Method):
    """One symmetric pair over the whole model a step."""

    option: ClassVar[str] = "mezo"
    summary: ClassVar[str] = "one symmetric pair over the whole model (arXiv 2305.17333)"

    def tree(self, blocks: int) -> EvaluationTree:
        return SPSA(1).tree(blocks)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        return SPSA(1).scalars(losses, eps)


@registered
@dataclass(frozen=True)
class SPSA(Whole):
    """`directions` symmetric pairs over the whole model: g = mean_i (l(w + eps z_i) - l(w - eps z_i)) / (2 eps) z_i."""

    option: ClassVar[str] = "spsa"
    summary: ClassVar[str] = "symmetric pairs over the whole model (Spall 1992)"

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        return [cls(1), cls(3)]


@registered
@dataclass(frozen=True)
class OneSided(Whole):
    """`directions` forward differences against one unmoved loss: g = mean_i (l(w + eps z_i) - l(w)) / eps z_i."""

    option: ClassVar[str] = "one-sided"
    summary: ClassVar[str] = "forward differences against one unmoved loss"
    _one_sided: ClassVar[bool] = True

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        return [cls(1), cls(3)]
