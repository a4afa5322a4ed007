"""The executor: runs an evaluation tree, node after node, and returns the losses of its leaves.

Two ways. Perturbed (the default): weights are moved where they are consumed and never written. In place: weights are written
and restored, for models that need it; a restore is not exact in floating point, so a journal of it says that it is inexact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blockzo import ops
from blockzo.blocks import Blocks
from blockzo.noise import Noise
from blockzo.ops.params import Target, targets
from blockzo.perturb import Move, PerturbedForward
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
    """What one tree gave: `losses` of the leaves in order, forward `flops`, and ids of the parameters that were `used`."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.flops = 0
        self.used: set[int] = set()

    def loss(self, value: Any, moves: Sequence[BlockMove]) -> float:
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(
                f"loss_fn returned {found}; expected a tensor with one element, the mean loss of the batch"
            )
        loss = float(value.float())
        if not math.isfinite(loss):
            where = (
                ", ".join(f"block {m.block} direction {m.direction} sign {m.sign:+d}" for m in moves)
                or "unmoved weights"
            )
            raise ValueError(
                f"the loss is {loss} at {where}; expected a finite number. The step was not applied: "
                "lower eps or the learning rate, or look at the batch"
            )
        return loss


class PerturbedExecutor(Walker):
    """Evaluates a tree without writing a weight."""

    def __init__(self, blocks: Blocks, noise: Noise, eps: Sequence[float]) -> None:
        super().__init__(len(blocks))
        self.blocks, self.noise, self.eps = blocks, noise, eps
        self.members = members(blocks)
        self._moves: dict[BlockMove, list[Move]] = {}

    def run(self, tree: EvaluationTree, forward: Callable[[], Any]) -> Evaluation:
        result = Evaluation()

        def visit(node: Node, kept: object) -> object:
            mode = PerturbedForward(self._on_path(node.stop), self._later(node.stop))
            try:
                with mode:
                    output = self.blocks.run(forward, node.first, node.stop, kept)
            finally:
                result.flops += mode.flops
                result.used |= mode.used
            if node.children:
                return output
            return result.loss(output, [move for move in self.state if move is not None])

        with evaluation_mode(self.blocks.model):
            result.losses = [float(loss) for loss in self.walk(tree, visit)]  # type: ignore[arg-type]
        return result

    def _on_path(self, stop: int) -> list[Move]:
        """Blocks before `first` too: a tied weight of theirs may be used again here."""
        return [move for state in self.state[:stop] if state is not None for move in self._block_moves(state)]

    def _block_moves(self, move: BlockMove) -> list[Move]:
        if move not in self._moves:
            scale = move.sign * self.eps[move.block]
            self._moves[move] = [
                Move(t.name, t.tensor, self.noise, move.direction, scale) for t in self.members[move.block]
            ]
        return self._moves[move]

    def _later(self, stop: int) -> dict[int, str]:
        return {
            id(
                target.tensor
            ): f"parameter {target.name!r} belongs to block {block} but the model uses it in block {stop - 1} or "
            "before; pass Blocks(example=...) so that it is assigned where it is used first"
            for block in range(stop, len(self.blocks))
            for target in self.members[block]
        }


class InPlaceExecutor(Walker):
    """Evaluates a tree by moving the weights themselves, one pass from each state to the next.

    After `run` the weights are still moved: `finish` folds the restore into the update, `restore` undoes the move.
    """

    def __init__(self, blocks: Blocks, noise: Noise, eps: Sequence[float]) -> None:
        super().__init__(len(blocks))
        self.blocks, self.noise, self.eps = blocks, noise, eps
        self.members = [{t.name: t.tensor for t in block} for block in members(blocks)]
        self.passes = 0

    def run(self, tree: EvaluationTree, forward: Callable[[], Any]) -> Evaluation:
        result = Evaluation()

        def visit(node: Node, kept: object) -> object:
            with PerturbedForward() as mode:
                output = self.blocks.run(forward, node.first, node.stop, kept)
            result.flops += mode.flops
            result.used |= mode.used
            if node.children:
                return output
            return result.loss(output, [move for move in self.state if move is not None])

        try:
            with evaluation_mode(self.blocks.model):
                result.losses = [float(loss) for loss in self.walk(tree, visit)]  # type: ignore[arg-type]
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
        ops.shift_(self.members[block], self.noise, list(terms.items()))
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
                self.noise,
                list(terms.values()),
                list(terms),
                decay=update.decay,
                stochastic_rounding=stochastic_rounding,
            )
            self.state[block] = None
            self.passes += 1

    def _scale(self, move: BlockMove) -> float:
        return move.sign * self.eps[move.block]


def members(blocks: Blocks) -> list[list[Target]]:
    """Targets of each block; every check of `ops` is made here once for the whole model."""
    result: list[list[Target]] = [[] for _ in range(len(blocks))]
    for target in targets(blocks.model):
        block = blocks.layout.get(target.name)
        if block is None:
            raise ValueError(
                f"parameter {target.name!r} became trainable after the model was cut into blocks; make Blocks(model) again"
            )
        result[block].append(target)
    return result
