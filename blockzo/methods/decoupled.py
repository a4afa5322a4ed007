"""Every block for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.journal.outside import shown
from blockzo.methods.base import Method, Scalars, affordable, contrasts, counts, registered
from blockzo.methods.tree import BlockMove, EvaluationTree, Node, joined


@registered
@dataclass(frozen=True)
class Decoupled(Method):
    """Every block for itself: directions[b] directions of block b, all other blocks unmoved; 0 leaves a block out.

    The activations before each moved block are made once, unmoved.

    Args:
        directions: for each block.
        one_sided: sign + only, against one unmoved loss; else symmetric pairs.
        centre: evaluates the unmoved loss of pairs too, which gives the curvature along every direction,
            (l+ + l- - 2 l0) / eps^2 (`slopes_and_curvatures`).
    """

    summary: ClassVar[str] = "every block for itself, the others unmoved"

    directions: tuple[int, ...]
    one_sided: bool = False
    centre: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", counts("directions", self.directions))

    def tree(self, blocks: int) -> EvaluationTree:
        if blocks != len(self.directions):
            raise ValueError(
                f"{len(self.directions)} numbers of directions for {blocks} blocks; expected one number a block"
            )
        affordable(f"directions {shown(self.directions)}", [2 * count for count in self.directions])
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

    @classmethod
    def examples(cls, blocks: int) -> list[Method]:
        some = tuple(block % 3 for block in range(1, blocks + 1))
        return [cls((2,) * blocks), cls(some, one_sided=True), cls(some, centre=True)]


def slopes_and_curvatures(losses: Sequence[float], eps: float) -> list[tuple[float, float]]:
    """Along every direction of one block, from the losses of its pairs with `centre`, the unmoved one first.

    Slopes are loss per unit of a weight, curvatures loss per its square.
    """
    centre, *moved = losses
    pairs = zip(moved[::2], moved[1::2], strict=True)
    return [((a - b) / (2 * eps), (a + b - 2 * centre) / eps**2) for a, b in pairs]
