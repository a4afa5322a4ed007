"""An evaluation tree cut into shares for several devices: contiguous leaves, each with the nodes above them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from blockzo.methods.tree import EvaluationTree, Node, Place, places


def spans(tree: EvaluationTree, shares: int, costs: Sequence[float]) -> list[tuple[int, int]]:
    """Leaves [start, stop) of each share, so that the dearest share costs least.

    A node above leaves of two shares is run by both.

    Args:
        costs: of running each block once, in any unit.

    Returns:
        `shares` spans in order; the last are empty where there are fewer leaves.
    """
    paths = [(*leaf.above, leaf) for leaf in tree.leaf_places]

    def price(found: Iterable[Place]) -> float:
        return sum(sum(costs[place.node.first : place.node.stop]) for place in found)

    whole = [price(path) for path in paths]
    more = [0.0, *(price(p for p in b if not any(p is q for q in a)) for a, b in zip(paths, paths[1:], strict=False))]

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

    def keep(found: Sequence[Place]) -> tuple[Node, ...]:
        wanted = [p for p in found if p.leaf < stop and p.leaf + p.node.leaves > start]
        return tuple(replace(p.node, children=keep(p.children)) for p in wanted)

    return EvaluationTree(tree.blocks, keep(places(tree.roots)))
