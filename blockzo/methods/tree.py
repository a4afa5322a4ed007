"""Evaluation trees: which blocks run, under which directions and signs, on whose activations, and in which order.

A node runs blocks `first` .. `stop`-1 on the activations its parent left; a node whose `stop` is the number of blocks is a leaf
and gives one loss. Leaves are numbered depth first. `walk` is the schedule: executors run by it and costs are counted by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar


@dataclass(frozen=True)
class BlockMove:
    """Block `block` is moved by sign * eps along `direction`; sign is +1 or -1."""

    block: int
    direction: int
    sign: int


@dataclass(frozen=True)
class Node:
    first: int
    stop: int
    moves: tuple[BlockMove, ...] = ()
    children: tuple[Node, ...] = ()

    @property
    def kind(self) -> tuple[int, int]:
        """Nodes of one kind run the same part of the model, and may run together."""
        return self.first, self.stop

    @cached_property
    def leaves(self) -> int:
        return sum(child.leaves for child in self.children) if self.children else 1


@dataclass(frozen=True)
class Place:
    """A node where it stands in its tree.

    Attributes:
        path: what every block up to the node's last is moved by; None: unmoved.
        leaf: number of the first leaf below it, or its own.
        above: the nodes over it, from the root down.
    """

    node: Node
    path: tuple[BlockMove | None, ...]
    leaf: int
    above: tuple[Place, ...] = ()

    @property
    def children(self) -> list[Place]:
        return places(self.node.children, self.path, self.leaf, (*self.above, self))


def places(
    nodes: Sequence[Node], path: tuple[BlockMove | None, ...] = (), leaf: int = 0, above: tuple[Place, ...] = ()
) -> list[Place]:
    """Of siblings: what was moved before them, the number of the first leaf, and what stands over them."""
    result = []
    for node in nodes:
        wanted = {move.block: move for move in node.moves}
        moves = (*path, *(wanted.get(block) for block in range(node.first, node.stop)))
        result.append(Place(node, moves, leaf, above))
        leaf += node.leaves
    return result


Waiting = Sequence[tuple[int, Place]]
"""Nodes of one kind that may run together, each with the number of its parent in the part that ran last."""
Kept = TypeVar("Kept")
Run = Callable[[Waiting, Kept], Iterable[tuple[Waiting, Kept]]]
"""Runs them on what their parents left, in one part or several, and gives each part with what it leaves."""


@dataclass(frozen=True)
class EvaluationTree:
    """The roots of one step; `blocks` is the number of blocks of the model."""

    blocks: int
    roots: tuple[Node, ...]

    def __post_init__(self) -> None:
        for place in self.places:
            node, at = place.node, place.above[-1].node.stop if place.above else 0
            leaf = node.stop == self.blocks
            if node.first != at or not at < node.stop <= self.blocks or leaf == bool(node.children):
                raise ValueError(
                    f"a node runs blocks {node.first} to {node.stop} after block {at} with {len(node.children)} children; "
                    f"expected a node that begins at {at} and has children unless it ends at {self.blocks}"
                )

    @cached_property
    def places(self) -> list[Place]:
        """All nodes, depth first."""

        def below(found: Sequence[Place]) -> Iterator[Place]:
            for place in found:
                yield place
                yield from below(place.children)

        return list(below(places(self.roots)))

    @cached_property
    def leaf_places(self) -> list[Place]:
        return [place for place in self.places if not place.node.children]

    @property
    def leaves(self) -> int:
        return len(self.leaf_places)

    @property
    def runs(self) -> list[int]:
        """How many times each block is run in one step."""
        return [sum(p.node.first <= block < p.node.stop for p in self.places) for block in range(self.blocks)]

    @property
    def directions(self) -> tuple[int, ...]:
        """How many directions each block has in one step."""
        counts = [0] * self.blocks
        for moves in self.leaf_moves():
            for move in moves:
                counts[move.block] = max(counts[move.block], move.direction + 1)
        return tuple(counts)

    def flops(self, block_flops: Sequence[float]) -> float:
        """Forward FLOPs of one step, from the forward FLOPs of each block."""
        return sum(runs * flops for runs, flops in zip(self.runs, block_flops, strict=True))

    def leaf_moves(self) -> list[tuple[BlockMove, ...]]:
        """What is moved at each leaf, its whole path taken together."""
        return [tuple(move for move in place.path if move is not None) for place in self.leaf_places]

    def walk(self, run: Run[Kept], kept: Kept, together: bool = True) -> None:
        """The schedule: everything below a part runs before the next part.

        Args:
            run: runs nodes that wait; all nodes of one kind among siblings and cousins, or one.
            kept: what the roots run on.
            together: False: one node at a time, depth first.
        """

        def visit(waiting: Waiting, kept: Kept) -> None:
            for part in _alike(waiting) if together else [[one] for one in waiting]:
                for ran, left in run(part, kept):
                    below = [(number, child) for number, (_, place) in enumerate(ran) for child in place.children]
                    if below:
                        visit(below, left)

        visit([(0, place) for place in places(self.roots)], kept)


def _alike(waiting: Waiting) -> Iterable[Waiting]:
    found: dict[tuple[int, int], list[tuple[int, Place]]] = {}
    for one in waiting:
        found.setdefault(one[1].node.kind, []).append(one)
    return found.values()


def each_of(tree: EvaluationTree, examples: Sequence[int], count: int) -> EvaluationTree:
    """The tree once for each of these examples out of `count`, along directions of its own: k * count + example for k."""

    def of(node: Node, example: int) -> Node:
        moves = tuple(replace(move, direction=move.direction * count + example) for move in node.moves)
        return replace(node, moves=moves, children=tuple(of(child, example) for child in node.children))

    return EvaluationTree(tree.blocks, tuple(of(root, example) for example in examples for root in tree.roots))


def joined(node: Node) -> Node:
    """The same evaluation with every only child run together with its parent, so that nothing is kept for it."""
    children = tuple(joined(child) for child in node.children)
    if len(children) == 1:
        return replace(children[0], first=node.first, moves=node.moves + children[0].moves)
    return replace(node, children=children)
