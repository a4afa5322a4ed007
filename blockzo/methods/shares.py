"""An evaluation tree cut into shares for several devices: contiguous leaves, each with the nodes above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blockzo.methods.tree import EvaluationTree, Node


def _paths(tree: EvaluationTree) -> list[tuple[int, ...]]:
    """For every leaf, the numbers of the nodes from its root to it."""
    result: list[tuple[int, ...]] = []
    count = -1

    def walk(node: Node, path: tuple[int, ...]) -> None:
        nonlocal count
        count += 1
        path = (*path, count)
        if not node.children:
            result.append(path)
        for child in node.children:
            walk(child, path)

    for root in tree.roots:
        walk(root, ())
    return result


def spans(tree: EvaluationTree, shares: int, costs: Sequence[float]) -> list[tuple[int, int]]:
    """Leaves [start, stop) of each share, so that the dearest share costs least.

    A node above leaves of two shares is run by both.

    Args:
        costs: of running each block once, in any unit.

    Returns:
        `shares` spans in order; the last are empty where there are fewer leaves.
    """
    price = [sum(costs[node.first : node.stop]) for node in tree.nodes()]
    paths = _paths(tree)
    whole = [sum(price[n] for n in path) for path in paths]
    more = [0.0, *(sum(price[n] for n in b if n not in a) for a, b in zip(paths, paths[1:], strict=False))]

    def cut(limit: float) -> list[tuple[int, int]]:
        found, start, spent = [], 0, whole[0]
        for leaf in range(1, len(paths)):
            if spent + more[leaf] > limit:
                found.append((start, leaf))
                start, spent = leaf, whole[leaf]
            else:
                spent += more[leaf]
        return [*found, (start, len(paths))]

    low, high = max(whole), sum(whole)
    if len(cut(low)) > shares:
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if len(cut(middle)) > shares else (low, middle)
        low = high
    best = cut(low)
    return best + [(len(paths), len(paths))] * (shares - len(best))


def share(tree: EvaluationTree, start: int, stop: int) -> EvaluationTree:
    """The tree with leaves [start, stop) alone, and the nodes above them."""
    count = 0

    def keep(node: Node) -> Node | None:
        nonlocal count
        if not node.children:
            count += 1
            return node if start < count <= stop else None
        children = tuple(found for child in node.children if (found := keep(child)) is not None)
        return replace(node, children=children) if children else None

    roots = tuple(found for root in tree.roots if (found := keep(root)) is not None)
    return EvaluationTree(tree.blocks, roots)
