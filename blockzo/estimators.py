"""The methods: which evaluations a step makes, and how their losses become one scalar for every (block, direction).

The gradient estimate of block b is sum_k s_bk z_bk; an update is minus the learning rate times it. Sources: SPSA (Spall 1992),
MeZO (Malladi et al., arXiv 2305.17333), SPZO (Ahmed et al., arXiv 2502.10239), FZOO (arXiv 2506.09034); the pairing of SPZO's
perturbations is derived in docs/methods.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from blockzo.blocks import Blocks
from blockzo.tree import BlockMove, EvaluationTree, Node, joined

Scalars = list[dict[int, float]]
"""For every block, direction -> its scalar s."""


class Method(Protocol):
    """What the optimiser needs of a method."""

    def tree(self, blocks: int) -> EvaluationTree: ...

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars: ...

    def describe(self) -> dict[str, Any]: ...


def _positive(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a positive integer")


class _Described:
    def describe(self) -> dict[str, Any]:
        """Name and settings, as a journal's header holds them."""
        return {"name": type(self).__name__, **vars(self)}


@dataclass(frozen=True)
class Tree(_Described):
    """Coupled split perturbations of any depth: block d has levels[d] directions under each direction of block d-1.

    Both signs run down the whole path, and the loss difference of a path serves every block on it; a block uses the mean over
    what lies below. `one_sided` evaluates + only, against one unmoved loss. Levels must be as many as blocks.
    """

    levels: tuple[int, ...]
    one_sided: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        for level in self.levels:
            _positive(level=level)
        if not self.levels:
            raise ValueError("levels is empty; expected a number of directions for each block")

    def _padded(self, blocks: int) -> tuple[int, ...]:
        if blocks != len(self.levels):
            raise ValueError(f"{len(self.levels)} levels of directions for {blocks} blocks; expected one level a block")
        return self.levels

    def tree(self, blocks: int) -> EvaluationTree:
        levels = self._padded(blocks)

        def grow(depth: int, parent: int, sign: int) -> tuple[Node, ...]:
            if depth == blocks:
                return ()
            numbers = range(parent * levels[depth], (parent + 1) * levels[depth])
            return tuple(
                Node(depth, depth + 1, (BlockMove(depth, i, sign),), grow(depth + 1, i, sign)) for i in numbers
            )

        roots: list[Node] = [Node(0, blocks)] if self.one_sided else []
        for i in range(levels[0]):
            for sign in (1,) if self.one_sided else (1, -1):
                roots.append(joined(Node(0, 1, (BlockMove(0, i, sign),), grow(1, i, sign))))
        return EvaluationTree(blocks, tuple(roots))

    def slopes(self, losses: Sequence[float], levels: Sequence[int]) -> list[float]:
        """Loss differences of the paths, in the order of the last block's directions, to be divided by eps."""
        below = math.prod(levels[1:])
        if self.one_sided:
            return [loss - losses[0] for loss in losses[1:]]
        result = []
        for i in range(levels[0]):
            plus = losses[2 * i * below : (2 * i + 1) * below]
            minus = losses[(2 * i + 1) * below : (2 * i + 2) * below]
            result += [(a - b) / 2 for a, b in zip(plus, minus, strict=True)]
        return result

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        levels = self._padded(len(eps))
        slopes = self.slopes(losses, levels)
        result: Scalars = []
        for depth in range(len(levels)):
            count = math.prod(levels[: depth + 1])
            below = len(slopes) // count
            result.append(
                {k: math.fsum(slopes[k * below : (k + 1) * below]) / (len(slopes) * eps[depth]) for k in range(count)}
            )
        return result


@dataclass(frozen=True)
class _Whole(_Described):
    """All blocks are moved together: the coupled tree with one direction a block under each of the first."""

    directions: int = 1
    _one_sided: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive(directions=self.directions)

    def _levels(self, blocks: int) -> Tree:
        return Tree((self.directions, *[1] * (blocks - 1)), self._one_sided)

    def tree(self, blocks: int) -> EvaluationTree:
        return self._levels(blocks).tree(blocks)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        return self._levels(len(eps)).scalars(losses, eps)


@dataclass(frozen=True)
class SPSA(_Whole):
    """`directions` symmetric pairs over the whole model: g = mean_i (l(w + eps z_i) - l(w - eps z_i)) / (2 eps) z_i."""


@dataclass(frozen=True)
class MeZO(_Described):
    """One symmetric pair over the whole model a step."""

    def tree(self, blocks: int) -> EvaluationTree:
        return SPSA(1).tree(blocks)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        return SPSA(1).scalars(losses, eps)


@dataclass(frozen=True)
class OneSided(_Whole):
    """`directions` forward differences against one unmoved loss: g = mean_i (l(w + eps z_i) - l(w)) / eps z_i."""

    _one_sided: ClassVar[bool] = True


@dataclass(frozen=True)
class FZOO(_Described):
    """One-sided with the estimate divided by the standard deviation of the moved losses (two or more directions).

    The deviation has the floor `1e-6 * (1 + |l0|)`, a few float32 roundings of a loss: below it the differences are rounding.
    """

    directions: int = 8

    def __post_init__(self) -> None:
        _positive(directions=self.directions)
        if self.directions < 2:
            raise ValueError(f"directions is {self.directions}; FZOO needs two or more for a standard deviation")

    def tree(self, blocks: int) -> EvaluationTree:
        return OneSided(self.directions).tree(blocks)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        moved = losses[1:]
        mean = math.fsum(moved) / len(moved)
        deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in moved) / (len(moved) - 1))
        scale = max(deviation, 1e-6 * (1.0 + abs(losses[0])))
        plain = OneSided(self.directions).scalars(losses, eps)
        return [{k: s / scale for k, s in block.items()} for block in plain]


@dataclass(frozen=True)
class SPZO(_Described):
    """Split perturbations of a two-block model: `outer` directions of block 1, `inner` of block 2 for each of them.

    Variants ("Update" and variances: docs/methods.md):
        coupled: both signs of a block-1 direction keep their activations; each feeds `inner` block-2 directions of its sign.
        crossed: all four sign pairs; each block's scalar is free of the other's noise to first order.
        decoupled: outer * inner pairs of block 2 on the unmoved block 1, run once; `outer` pairs of block 1 alone.
    """

    outer: int = 1
    inner: int = 4
    variant: str = "coupled"

    def __post_init__(self) -> None:
        _positive(outer=self.outer, inner=self.inner)
        if self.variant not in ("coupled", "crossed", "decoupled"):
            raise ValueError(f"variant is {self.variant!r}; expected coupled, crossed or decoupled")

    def tree(self, blocks: int) -> EvaluationTree:
        if blocks != 2:
            raise ValueError(
                f"SPZO splits a model in two, this one has {blocks} block(s); expected one boundary (or Tree)"
            )
        if self.variant == "coupled":
            return Tree((self.outer, self.inner)).tree(2)
        if self.variant == "crossed":
            return EvaluationTree(
                2,
                tuple(
                    Node(0, 1, (BlockMove(0, i, sign),), self._pairs(i * self.inner, (i + 1) * self.inner))
                    for i in range(self.outer)
                    for sign in (1, -1)
                ),
            )
        late = Node(0, 1, (), self._pairs(0, self.outer * self.inner))
        early = [Node(0, 2, (BlockMove(0, i, sign),)) for i in range(self.outer) for sign in (1, -1)]
        return EvaluationTree(2, (late, *early))

    @staticmethod
    def _pairs(start: int, stop: int) -> tuple[Node, ...]:
        return tuple(Node(1, 2, (BlockMove(1, j, sign),)) for j in range(start, stop) for sign in (1, -1))

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        if self.variant == "coupled":
            return Tree((self.outer, self.inner)).scalars(losses, eps)
        total = self.outer * self.inner
        if self.variant == "decoupled":
            late = {j: (losses[2 * j] - losses[2 * j + 1]) / (2 * eps[1] * total) for j in range(total)}
            rest = losses[2 * total :]
            early = {i: (rest[2 * i] - rest[2 * i + 1]) / (2 * eps[0] * self.outer) for i in range(self.outer)}
            return [early, late]
        early, late = {}, {}
        for i in range(self.outer):
            at = 4 * i * self.inner
            plus, minus = losses[at : at + 2 * self.inner], losses[at + 2 * self.inner : at + 4 * self.inner]
            early[i] = (math.fsum(plus) - math.fsum(minus)) / (4 * eps[0] * self.inner * self.outer)
            for j in range(self.inner):
                difference = plus[2 * j] - plus[2 * j + 1] + minus[2 * j] - minus[2 * j + 1]
                late[i * self.inner + j] = difference / (4 * eps[1] * total)
        return [early, late]


def default_blocks(model: nn.Module, method: Method) -> Blocks:
    """One block, or the model cut in half where the method needs two."""
    try:
        method.tree(1)
    except ValueError:
        return Blocks(model, "auto")
    return Blocks(model, [])
