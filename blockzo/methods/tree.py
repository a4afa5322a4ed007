"""Evaluation trees: which blocks run, under which directions and signs, on whose activations.

A node runs blocks `first` .. `stop`-1 on the activations its parent left; a node whose `stop` is the number of blocks is a leaf
and gives one loss. Leaves are numbered depth first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any


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


@dataclass(frozen=True)
class EvaluationTree:
    """The roots of one step; `blocks` is the number of blocks of the model."""

    blocks: int
    roots: tuple[Node, ...]

    def __post_init__(self) -> None:
        def check(node: Node, at: int) -> None:
            leaf = node.stop == self.blocks
            if node.first != at or not at < node.stop <= self.blocks or leaf == bool(node.children):
                raise ValueError(
                    f"a node runs blocks {node.first} to {node.stop} after block {at} with {len(node.children)} children; "
                    f"expected a node that begins at {at} and has children unless it ends at {self.blocks}"
                )
            for child in node.children:
                check(child, node.stop)

        for root in self.roots:
            check(root, 0)

    def nodes(self) -> Iterator[Node]:
        def walk(node: Node) -> Iterator[Node]:
            yield node
            for child in node.children:
                yield from walk(child)

        for root in self.roots:
            yield from walk(root)

    @property
    def leaves(self) -> int:
        return sum(not node.children for node in self.nodes())

    @property
    def runs(self) -> list[int]:
        """How many times each block is run in one step."""
        return [sum(node.first <= block < node.stop for node in self.nodes()) for block in range(self.blocks)]

    def flops(self, block_flops: Sequence[float]) -> float:
        """Forward FLOPs of one step, from the forward FLOPs of each block."""
        return sum(runs * flops for runs, flops in zip(self.runs, block_flops, strict=True))

    def groups(self, max_group: int = 1) -> Iterator[tuple[Node, int, tuple[tuple[int, int], ...]]]:
        """Batches of equal evaluations, in the order they run: a node of the batch, how many it has, what is kept meanwhile.

        Kept: (blocks run, number of activations) of every level above. Nodes that run the same blocks after parents of one batch
        run together, `max_group` at most.
        """

        def visit(nodes: Sequence[Node], kept: tuple[tuple[int, int], ...]) -> Iterator[Any]:
            alike: dict[tuple[int, int], list[Node]] = {}
            for node in nodes:
                alike.setdefault((node.first, node.stop), []).append(node)
            for waiting in alike.values():
                size = -(-len(waiting) // -(-len(waiting) // max_group))
                for at in range(0, len(waiting), size):
                    part = waiting[at : at + size]
                    yield part[0], len(part), kept
                    children = [child for node in part for child in node.children]
                    if children:
                        yield from visit(children, (*kept, (part[0].stop, len(part))))

        return visit(self.roots, ())

    def weight_reads(self, max_group: int = 1) -> list[int]:
        """How many times the weights of each block are read in one step, a batch of evaluations reading them once."""
        reads = [0] * self.blocks
        for node, _, _ in self.groups(max_group):
            for block in range(node.first, node.stop):
                reads[block] += 1
        return reads

    def kept_bytes(self, block_bytes: Sequence[int], max_group: int = 1) -> int:
        """Most bytes of activations kept at once, from those that each block leaves."""
        return max(sum(count * block_bytes[stop - 1] for stop, count in kept) for _, _, kept in self.groups(max_group))

    def leaf_moves(self) -> list[tuple[BlockMove, ...]]:
        """What is moved at each leaf, its whole path taken together."""
        result: list[tuple[BlockMove, ...]] = []

        def walk(node: Node, path: tuple[BlockMove, ...]) -> None:
            path += node.moves
            if not node.children:
                result.append(path)
            for child in node.children:
                walk(child, path)

        for root in self.roots:
            walk(root, ())
        return result

    def in_place_passes(self, sizes: Sequence[int]) -> float:
        """Passes over the weights of an in-place step, the final restore folded into the update.

        Args:
            sizes: number of weights of each block.
        """
        written = 0

        class Count(Walker):
            def move(self, block: int, target: BlockMove | None) -> None:
                nonlocal written
                if self.state[block] != target:
                    written += sizes[block]
                self.state[block] = target

        walker = Count(self.blocks)
        walker.walk(self, lambda node, kept: None)
        return (written + sum(sizes)) / max(1, sum(sizes))


class Walker:
    """Depth-first walk that keeps every block on the path in the state its node asks for."""

    def __init__(self, blocks: int) -> None:
        self.state: list[BlockMove | None] = [None] * blocks

    def move(self, block: int, target: BlockMove | None) -> None:
        self.state[block] = target

    def walk(self, tree: EvaluationTree, run: Callable[[Node, object], object]) -> list[object]:
        """Calls `run(node, kept)` for every node; returns what the leaves gave, in order."""
        losses: list[object] = []

        def visit(node: Node, kept: object) -> None:
            wanted = {move.block: move for move in node.moves}
            for block in range(node.first, node.stop):
                self.move(block, wanted.get(block))
            result = run(node, kept)
            if not node.children:
                losses.append(result)
            for child in node.children:
                visit(child, result)

        for root in tree.roots:
            visit(root, None)
        return losses


def joined(node: Node) -> Node:
    """The same evaluation with every only child run together with its parent, so that nothing is kept for it."""
    children = tuple(joined(child) for child in node.children)
    if len(children) == 1:
        return replace(children[0], first=node.first, moves=node.moves + children[0].moves)
    return replace(node, children=children)
