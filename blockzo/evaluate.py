"""The executor: runs an evaluation tree, siblings in groups, and returns the losses of its leaves.

Two ways. Perturbed (the default): weights are moved where they are consumed and never written. In place: weights are written
and restored, for models that need it; a restore is not exact in floating point, so a journal of it says that it is inexact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from blockzo import ops
from blockzo.blocks import Blocks
from blockzo.groups import Activations, Grouping, Limits, MaxGroup, group_losses, read_together, run_groups
from blockzo.noise import Noise
from blockzo.ops.distributed import reshard
from blockzo.ops.params import Target, targets, whole_targets
from blockzo.perturb import Index, Move, PerturbedForward
from blockzo.record import BlockUpdate
from blockzo.tree import BlockMove, EvaluationTree, Node, Walker

LossFunction = Callable[[nn.Module, Any], Tensor]


def hugging_face_loss(model: nn.Module, batch: Any) -> Tensor:
    """`model(**batch).loss`."""
    loss: Tensor = model(**batch).loss
    return loss


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and no autograd: sibling evaluations must differ by their weights alone."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class Evaluation:
    """What one tree gave: `losses` of the leaves in order, forward `flops`, and ids of the parameters that were `used`.

    `kept_bytes`: activations kept between blocks, at most at once.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.flops = self.kept_bytes = 0
        self.used: set[int] = set()

    def count(self, mode: PerturbedForward) -> None:
        self.flops += mode.flops
        self.used |= mode.used


def check_loss(loss: float, moves: Sequence[BlockMove | None]) -> float:
    if not math.isfinite(loss):
        where = ", ".join(f"block {m.block} direction {m.direction} sign {m.sign:+d}" for m in moves if m is not None)
        raise ValueError(
            f"the loss is {loss} at {where or 'unmoved weights'}; expected a finite number. The step was not applied: "
            "lower eps or the learning rate, or look at the batch"
        )
    return loss


@dataclass(frozen=True)
class _Place:
    """A node of the tree: the moves of all blocks up to its last, its parent's number in its group, its first leaf's number."""

    node: Node
    path: tuple[BlockMove | None, ...]
    parent: int
    leaf: int


class PerturbedExecutor:
    """Evaluates a tree without writing a weight, siblings in groups.

    Args:
        noise: of the step, or one for each block.
        eps: size of a move, one a block.
        max_group: evaluations that run as one batch at most; "auto": by measured memory, and only where it is faster. Kept
            activations are those of (levels of the tree) x (evaluations in a group).
        directions: for each block, numbers of the noise's directions that are the tree's directions 0, 1, 2, ...; the same
            numbers where None.
    """

    def __init__(
        self,
        blocks: Blocks,
        noise: Noise | Sequence[Noise],
        eps: Sequence[float],
        max_group: MaxGroup = "auto",
        directions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.blocks, self.eps = blocks, eps
        self.directions = directions
        self.noises = [noise] * len(blocks) if isinstance(noise, Noise) else list(noise)
        if len(self.noises) != len(blocks):
            raise ValueError(
                f"noise has {len(self.noises)} entries for {len(blocks)} blocks; expected one, or one a block"
            )
        self.members = members(blocks, whole_targets(blocks.model, "a perturbed forward"))
        device = next((t.tensor.device for block in self.members for t in block), torch.device("cpu"))
        self.grouping = Grouping(blocks, max_group, device)
        self._indices: dict[tuple[int, ...], Index] = {}

    def run(self, tree: EvaluationTree, forward: Callable[[], Any]) -> Evaluation:
        result = Evaluation()
        unread: list[tuple[list[int], Tensor]] = []
        self.grouping.busy.clear()

        def visit(places: Sequence[_Place], kept: Activations | None, held: int) -> None:
            result.kept_bytes = max(result.kept_bytes, held)
            alike: dict[tuple[int, int], list[_Place]] = {}
            for place in places:
                alike.setdefault((place.node.first, place.node.stop), []).append(place)
            for kind, waiting in alike.items():
                for part, output, mode in self.grouping.each(waiting, partial(self._run, forward, kept), kind):
                    result.count(mode)
                    if part[0].node.stop < len(self.blocks):
                        children = [child for at, place in enumerate(part) for child in _children(place, at)]
                        visit(children, output, held + output.nbytes)
                        continue
                    unread.append(([place.leaf for place in part], self._losses(output, len(part))))

        with evaluation_mode(self.blocks.model):
            visit(_places(tree.roots, (), 0, 0), None, 0)
        values = read_together([losses for _, losses in unread])
        found = {
            leaf: self._loss(leaf, value)
            for (leaves, _), group in zip(unread, values, strict=True)
            for leaf, value in zip(leaves, group, strict=True)
        }
        result.losses = [check_loss(found[leaf], moves) for leaf, moves in enumerate(tree.leaf_moves())]
        return result

    def _losses(self, output: Activations, groups: int) -> Tensor:
        """What is read of each group in the end, from what the loss function gave: float32, groups first."""
        return group_losses(output, groups)

    def _loss(self, leaf: int, value: Any) -> float:
        return float(value)

    def _run(
        self,
        forward: Callable[[], Any],
        kept: Activations | None,
        part: Sequence[_Place],
        row_limits: Limits | None,
        measure: bool,
    ) -> tuple[Activations, PerturbedForward]:
        first, stop = part[0].node.first, part[0].node.stop
        # blocks before `first` too: a tied weight of theirs may be used again here
        moves = {b: self._move(b, moved) for b in range(stop) if any(moved := [place.path[b] for place in part])}
        moved_blocks = tuple(moves)
        if moved_blocks not in self._indices:
            self._indices[moved_blocks] = Index({block: self.members[block] for block in moved_blocks})
        return run_groups(
            lambda before: self.blocks.run(forward, first, stop, before),
            None if kept is None else kept.take([place.parent for place in part]),
            self._indices[moved_blocks],
            moves,
            len(part),
            self._later(stop),
            row_limits,
            measure,
        )

    def _move(self, block: int, moves: Sequence[BlockMove | None]) -> Move:
        """Of one block in all groups; a group that does not move it has scale 0."""
        named = [0 if move is None else move.direction for move in moves]
        directions = tuple(named if self.directions is None else (self.directions[block][k] for k in named))
        scales = tuple(0.0 if move is None else move.sign * self.eps[block] for move in moves)
        return Move(self.noises[block], directions, scales)

    def _later(self, stop: int) -> dict[int, str]:
        return {
            id(
                target.tensor
            ): f"parameter {target.name!r} belongs to block {block} but the model uses it in block {stop - 1} or "
            "before; pass Blocks(example=...) so that it is assigned where it is used first"
            for block in range(stop, len(self.blocks))
            for target in self.members[block]
        }


def _places(nodes: Sequence[Node], path: tuple[BlockMove | None, ...], parent: int, leaf: int) -> list[_Place]:
    result = []
    for node in nodes:
        wanted = {move.block: move for move in node.moves}
        moves = (*path, *(wanted.get(block) for block in range(node.first, node.stop)))
        result.append(_Place(node, moves, parent, leaf))
        leaf += _leaves(node)
    return result


def _children(place: _Place, parent: int) -> list[_Place]:
    return _places(place.node.children, place.path, parent, place.leaf)


def _leaves(node: Node) -> int:
    return sum(map(_leaves, node.children)) if node.children else 1


class InPlaceExecutor(Walker):
    """Evaluates a tree by moving the weights themselves, one pass from each state to the next; of sharded ones this rank's part.

    After `run` the weights are still moved: `finish` folds the restore into the update, `restore` undoes the move.
    """

    def __init__(self, blocks: Blocks, noise: Noise | Sequence[Noise], eps: Sequence[float]) -> None:
        super().__init__(len(blocks))
        self.blocks, self.eps = blocks, eps
        self.noises = [noise] * len(blocks) if isinstance(noise, Noise) else list(noise)
        found = members(blocks, targets(blocks.model))
        self.members = [{t.name: t.tensor if t.owner is None else t.owner for t in block} for block in found]
        self.passes = 0

    def run(self, tree: EvaluationTree, forward: Callable[[], Any]) -> Evaluation:
        result = Evaluation()

        def visit(node: Node, kept: object) -> object:
            with PerturbedForward() as mode:
                output = self.blocks.run(forward, node.first, node.stop, kept)
            result.count(mode)
            if node.children:
                return output
            leaves, spec = tree_flatten(output)
            return group_losses(Activations(leaves, [False] * len(leaves), spec), 1)

        try:
            with evaluation_mode(self.blocks.model):
                found = self.walk(tree, visit)
            losses = [loss for (loss,) in read_together(found)]  # type: ignore[arg-type]
            result.losses = [check_loss(loss, moves) for loss, moves in zip(losses, tree.leaf_moves(), strict=True)]
        except BaseException:
            self.restore()
            raise
        return result

    def move(self, block: int, target: BlockMove | None) -> None:
        current = self.state[block]
        if current == target:
            return
        terms: dict[int, float] = {}
        if current is not None:
            terms[current.direction] = -self._scale(current)
        if target is not None:
            terms[target.direction] = terms.get(target.direction, 0.0) + self._scale(target)
        ops.shift_(self.members[block], self.noises[block], list(terms.items()))
        # the next forward must gather the shards anew
        reshard(self.blocks.model)
        self.state[block] = target
        self.passes += 1

    def restore(self) -> None:
        for block in range(len(self.blocks)):
            self.move(block, None)

    def finish(self, updates: Sequence[BlockUpdate], stochastic_rounding: bool) -> None:
        """Restores and updates in one pass over each block."""
        for block, update in enumerate(updates):
            terms = dict(zip(update.directions, update.coefficients, strict=True))
            current = self.state[block]
            if current is not None:
                undo = self._scale(current) * (1.0 - update.decay)
                terms[current.direction] = terms.get(current.direction, 0.0) + undo
            ops.update_(
                self.members[block],
                self.noises[block],
                list(terms.values()),
                list(terms),
                decay=update.decay,
                stochastic_rounding=stochastic_rounding,
            )
            self.state[block] = None
            self.passes += 1
        reshard(self.blocks.model)

    def _scale(self, move: BlockMove) -> float:
        return move.sign * self.eps[move.block]


def members(blocks: Blocks, found: Sequence[Target]) -> list[list[Target]]:
    """Targets of each block."""
    result: list[list[Target]] = [[] for _ in range(len(blocks))]
    for target in found:
        block = blocks.layout.get(target.name)
        if block is None:
            raise ValueError(
                f"parameter {target.name!r} became trainable after the model was cut into blocks; make Blocks(model) again"
            )
        result[block].append(target)
    return result
