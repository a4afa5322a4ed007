"""What the schedule of a tree costs before anything runs: counted by walking it, with what each block costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blockzo.methods.tree import BlockMove, EvaluationTree, Waiting

Held = tuple[tuple[int, int], ...]
"""(block that ended, number of activations it left) of every level above."""


def parts(tree: EvaluationTree, max_group: int = 1) -> list[tuple[Waiting, Held]]:
    """What runs together, in order, and what is kept meanwhile; `max_group` evaluations at most, parts as equal as can be."""
    found: list[tuple[Waiting, Held]] = []

    def run(waiting: Waiting, held: Held) -> Iterator[tuple[Waiting, Held]]:
        size = -(-len(waiting) // -(-len(waiting) // max_group))
        for at in range(0, len(waiting), size):
            part = waiting[at : at + size]
            found.append((part, held))
            yield part, (*held, (part[0][1].node.stop, len(part)))

    nothing: Held = ()
    tree.walk(run, nothing)
    return found


def weight_reads(tree: EvaluationTree, max_group: int = 1) -> list[int]:
    """How many times the weights of each block are read in one step, a batch of evaluations reading them once."""
    reads = [0] * tree.blocks
    for part, _ in parts(tree, max_group):
        for block in range(*part[0][1].node.kind):
            reads[block] += 1
    return reads


def kept_bytes(tree: EvaluationTree, block_bytes: Sequence[int], max_group: int = 1) -> int:
    """Most bytes of activations kept at once, from those that each block leaves."""
    return max(sum(count * block_bytes[stop - 1] for stop, count in held) for _, held in parts(tree, max_group))


def in_place_passes(tree: EvaluationTree, sizes: Sequence[int]) -> float:
    """Passes over the weights of an in-place step, the final restore folded into the update.

    Args:
        sizes: number of weights of each block.
    """
    state: list[BlockMove | None] = [None] * tree.blocks
    written = 0

    def run(waiting: Waiting, kept: None) -> Iterator[tuple[Waiting, None]]:
        nonlocal written
        ((_, place),) = waiting
        for block in range(*place.node.kind):
            written += sizes[block] if state[block] != place.path[block] else 0
            state[block] = place.path[block]
        yield waiting, None

    tree.walk(run, None, together=False)
    return (written + sum(sizes)) / max(1, sum(sizes))
