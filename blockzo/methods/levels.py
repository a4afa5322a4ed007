"""Split perturbations of any depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.journal.outside import MOST_BLOCKS, shown
from blockzo.methods.base import Method, Scalars, affordable, contrasts, counts, registered
from blockzo.methods.tree import BlockMove, EvaluationTree, Node, joined


@registered
@dataclass(frozen=True)
class Tree(Method):
    """Split perturbations of any depth: block d has levels[d] directions under each direction of the moved block before it.

    A block with 0 directions is not moved: it is run once under what is moved before it. Levels must be as many as blocks.

    Args:
        signs: "coupled": the sign of the first moved block runs down the whole path, and the loss difference of a path serves
            every block on it; "crossed": every block tries both signs under both signs of the blocks before it, so that its
            scalar is free of their noise to first order.
        one_sided: sign + only, against one unmoved loss.
    """

    option: ClassVar[str] = "tree"
    summary: ClassVar[str] = "split perturbations of any depth"
    options: ClassVar[tuple[str, ...]] = ("levels", "one_sided")

    levels: tuple[int, ...]
    one_sided: bool = False
    signs: str = "coupled"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", counts("levels", self.levels))
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
        affordable(f"levels {shown(self.levels)}", nodes[1:])

        def grow(depth: int, parent: int, signs: tuple[int, ...]) -> tuple[Node, ...]:
            if depth == blocks:
                return ()
            count = self.levels[depth]
            # the unmoved loss shares the blocks that nothing moves
            base = (Node(depth, blocks),) if self.one_sided and depth == first else ()
            if not count:
                return (Node(depth, depth + 1, (), grow(depth + 1, parent, signs)),)
            return base + tuple(
                Node(depth, depth + 1, (BlockMove(depth, i, sign),), grow(depth + 1, i, self._below(sign)))
                for i in range(parent * count, (parent + 1) * count)
                for sign in signs
            )

        first = next(block for block, count in enumerate(self.levels) if count)
        roots = grow(0, 0, (1,) if self.one_sided else (1, -1))
        return EvaluationTree(blocks, tuple(joined(root) for root in roots))

    def _below(self, sign: int) -> tuple[int, ...]:
        return (1, -1) if self.signs == "crossed" else (sign,)

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        tree = self.tree(len(eps))
        if self.one_sided:
            base = losses[0]
            return contrasts(tree, losses, eps, base, mirrored=False)
        return contrasts(tree, losses, eps)

    def evaluations(self, blocks: int) -> float:
        width = 2 if self.signs == "crossed" else 1
        return 2.0 * math.prod(float(max(1, width * level)) for level in self.levels)

    def default_blocks(self) -> int:
        return len(self.levels)

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        levels = tuple(range(1, blocks + 1))
        rests = [cls((0, *levels[1:])), cls((0, *levels[1:]), one_sided=True)] if blocks > 1 else []
        return [cls(levels), cls(levels, one_sided=True), cls((1,) * blocks, signs="crossed"), *rests]
