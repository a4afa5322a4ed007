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

from blockzo.journal.outside import MOST_BLOCKS, MOST_EVALUATIONS, shown
from blockzo.methods.tree import BlockMove, EvaluationTree, Node, joined
from blockzo.perturb.blocks import Blocks

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


def contrasts(
    tree: EvaluationTree, losses: Sequence[float], eps: Sequence[float], base: float = 0.0, mirrored: bool = True
) -> Scalars:
    """The rule that all methods share: block b, direction k has the mean of sign * (loss - base) / eps_b over the leaves that it
    moves, divided by the number of directions of b. `mirrored` trees move every direction by both signs, and the base cancels.
    """
    terms: Scalars = [{} for _ in range(tree.blocks)]
    seen: list[dict[int, list[float]]] = [{} for _ in range(tree.blocks)]
    for moves, loss in zip(tree.leaf_moves(), losses, strict=True):
        for move in moves:
            values = seen[move.block].setdefault(move.direction, [])
            values += [move.sign * loss] if mirrored else [move.sign * loss, -move.sign * base]
    for block, found in enumerate(seen):
        for direction, values in sorted(found.items()):
            leaves = len(values) if mirrored else len(values) // 2
            terms[block][direction] = math.fsum(values) / (leaves * len(found) * eps[block])
    return terms


def _counts(what: str, values: Sequence[int]) -> tuple[int, ...]:
    values = tuple(values)
    if not values or not any(values) or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(
            f"{what} is {values}; expected a number of directions for each block, 0 or more and not all of them 0"
        )
    return values


def _affordable(what: str, nodes: Sequence[int]) -> None:
    """Raises ValueError before a tree is grown that no step could evaluate.

    Args:
        nodes: of every block, as they lie in the tree; the largest number is about that of the leaves.
    """
    if len(nodes) > MOST_BLOCKS or max(nodes) > MOST_EVALUATIONS or sum(nodes) > 2 * MOST_EVALUATIONS:
        raise ValueError(
            f"{what} of {len(nodes)} blocks are too many for one step; expected at most {MOST_EVALUATIONS} evaluations of at "
            f"most {MOST_BLOCKS} blocks: take fewer directions"
        )


@dataclass(frozen=True)
class Tree(_Described):
    """Split perturbations of any depth: block d has levels[d] directions under each direction of the moved block before it.

    A block with 0 directions is not moved: it is run once under what is moved before it. Levels must be as many as blocks.

    Args:
        signs: "coupled": the sign of the first moved block runs down the whole path, and the loss difference of a path serves
            every block on it; "crossed": every block tries both signs under both signs of the blocks before it, so that its
            scalar is free of their noise to first order.
        one_sided: sign + only, against one unmoved loss.
    """

    levels: tuple[int, ...]
    one_sided: bool = False
    signs: str = "coupled"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _counts("levels", self.levels))
        if self.signs not in ("coupled", "crossed"):
            raise ValueError(f"signs is {self.signs!r}; expected coupled or crossed")
        if self.one_sided and self.signs == "crossed":
            raise ValueError('one-sided evaluation has only the sign +; expected signs="coupled"')

    def tree(self, blocks: int) -> EvaluationTree:
        if blocks != len(self.levels):
            raise ValueError(f"{len(self.levels)} levels of directions for {blocks} blocks; expected one level a block")
        width, nodes = 2 if self.signs == "crossed" else 1, [1 if self.one_sided or self.signs == "crossed" else 2]
        for count in self.levels[: MOST_BLOCKS + 1]:
            nodes.append(min(nodes[-1] * (width * count or 1), 1 << 60))
        _affordable(f"levels {shown(self.levels)}", nodes[1:])

        def grow(depth: int, parent: int, signs: tuple[int, ...]) -> tuple[Node, ...]:
            if depth == blocks:
                return ()
            count = self.levels[depth]
            if not count:
                return (Node(depth, depth + 1, (), grow(depth + 1, parent, signs)),)
            return tuple(
                Node(depth, depth + 1, (BlockMove(depth, i, sign),), grow(depth + 1, i, self._below(sign)))
                for i in range(parent * count, (parent + 1) * count)
                for sign in signs
            )

        roots = grow(0, 0, (1,) if self.one_sided else (1, -1))
        base = (Node(0, blocks),) if self.one_sided else ()
        return EvaluationTree(blocks, base + tuple(joined(root) for root in roots))

    def _below(self, sign: int) -> tuple[int, ...]:
        return (1, -1) if self.signs == "crossed" else (sign,)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        tree = self.tree(len(eps))
        if self.one_sided:
            base = losses[0]
            return contrasts(tree, losses, eps, base, mirrored=False)
        return contrasts(tree, losses, eps)


@dataclass(frozen=True)
class Decoupled(_Described):
    """Every block for itself: directions[b] directions of block b, all other blocks unmoved; 0 leaves a block out.

    The activations before each moved block are made once, unmoved.

    Args:
        directions: for each block.
        one_sided: sign + only, against one unmoved loss; else symmetric pairs.
        centre: evaluates the unmoved loss of pairs too, which gives the curvature along every direction,
            (l+ + l- - 2 l0) / eps^2.
    """

    directions: tuple[int, ...]
    one_sided: bool = False
    centre: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", _counts("directions", self.directions))

    def tree(self, blocks: int) -> EvaluationTree:
        if blocks != len(self.directions):
            raise ValueError(
                f"{len(self.directions)} numbers of directions for {blocks} blocks; expected one number a block"
            )
        _affordable(f"directions {shown(self.directions)}", [2 * count for count in self.directions])
        last = max(block for block, count in enumerate(self.directions) if count)
        signs = (1,) if self.one_sided else (1, -1)

        def grow(block: int) -> tuple[Node, ...]:
            """The unmoved block with all that follows it, then the directions of this block."""
            rest: tuple[Node, ...] = ()
            if block < last:
                rest = (Node(block, block + 1, (), grow(block + 1)),)
            elif self.centre or self.one_sided:
                rest = (Node(block, blocks),)
            moved = range(self.directions[block])
            return rest + tuple(Node(block, blocks, (BlockMove(block, k, sign),)) for k in moved for sign in signs)

        return EvaluationTree(blocks, tuple(joined(root) for root in grow(0)))

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        tree = self.tree(len(eps))
        return (
            contrasts(tree, losses, eps, losses[0], mirrored=False) if self.one_sided else contrasts(tree, losses, eps)
        )


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

    Args:
        one_sided: coupled, decoupled: sign + only, against one unmoved loss.
    """

    outer: int = 1
    inner: int = 4
    variant: str = "coupled"
    one_sided: bool = False

    def __post_init__(self) -> None:
        _positive(outer=self.outer, inner=self.inner)
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


def default_blocks(model: nn.Module, method: Method) -> Blocks:
    """One block, or the model cut in half where the method needs two."""
    try:
        method.tree(1)
    except ValueError:
        return Blocks(model, "auto")
    return Blocks(model, [])
