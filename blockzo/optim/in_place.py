"""The executor that moves the weights themselves, for models that need it.

A restore is not exact in floating point, so a journal of it says that it is inexact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from blockzo import ops
from blockzo.journal.record import BlockUpdate
from blockzo.methods.tree import BlockMove, EvaluationTree, Waiting
from blockzo.noise import Noise
from blockzo.ops.distributed import reshard
from blockzo.ops.params import targets
from blockzo.optim.evaluation import Evaluation, check_loss
from blockzo.optim.reuse import DEPENDS, Reuse, UnmovedTrial, continues, finite, whole
from blockzo.perturb import PerturbedForward
from blockzo.perturb.activations import Activations, group_losses, read_together
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import evaluation_mode
from blockzo.perturb.passes import ROUNDED, Path, PathChanged, no_drift


class InPlaceExecutor:
    """Evaluates a tree by moving the weights themselves, one pass from each state to the next; of sharded ones this rank's part.

    After `run` the weights are still moved: `finish` folds the restore into the update, `restore` undoes the move.
    """

    def __init__(
        self, blocks: Blocks, noise: Noise | Sequence[Noise], eps: Sequence[float], reuse: Reuse | None = None
    ) -> None:
        self.blocks, self.eps = blocks, eps
        self.state: list[BlockMove | None] = [None] * len(blocks)
        self.reuse = reuse or Reuse(blocks)
        self.noises = [noise] * len(blocks) if isinstance(noise, Noise) else list(noise)
        found = blocks.members(targets(blocks.model))
        self.members = [{t.name: t.tensor if t.owner is None else t.owner for t in block} for block in found]
        self.passes = 0

    def run(self, tree: EvaluationTree, forward: Callable[[], Any]) -> Evaluation:
        result = Evaluation()
        try:
            with evaluation_mode(self.blocks.model):
                if self.reuse.needed(tree):
                    self.reuse.check(UnmovedTrial(self.blocks, forward))
                losses = self._continued(tree, forward, result)
            result.losses = [check_loss(loss, moves) for loss, moves in zip(losses, tree.leaf_moves(), strict=True)]
        except BaseException:
            self.restore()
            raise
        return result

    def _continued(self, tree: EvaluationTree, forward: Callable[[], Any], result: Evaluation) -> list[float]:
        running = self.reuse.tree(tree)
        if not continues(running):
            return self._evaluate(running, forward, result)[0]
        try:
            losses, drift, paths = self._evaluate(running, forward, result)
            if drift > ROUNDED:
                raise PathChanged(DEPENDS)
            if not finite(losses):
                found = self._evaluate(whole(tree), forward, result)[0]
                self.reuse.compare(dict(enumerate(losses)), dict(enumerate(found)))
                return found
            if all(map(self.reuse.accepts, paths)):
                self.reuse.failures = 0
                return losses
            error: Exception = PathChanged("its layers are called otherwise from evaluation to evaluation")
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as failure:
            error = failure
        losses = self._evaluate(whole(tree), forward, result)[0]
        self.reuse.failed(error)
        return losses

    def _evaluate(
        self, tree: EvaluationTree, forward: Callable[[], Any], result: Evaluation
    ) -> tuple[list[float], float, set[Path]]:
        paths: set[Path] = set()
        keeps = continues(tree)

        found: list[tuple[Tensor, Tensor]] = []

        def alone(waiting: Waiting, kept: Any) -> Iterator[tuple[Waiting, Any]]:
            ((_, place),) = waiting
            node = place.node
            for block in range(*node.kind):
                self.move(block, place.path[block])
            drift, output = no_drift(), None
            with PerturbedForward() as mode:
                mode.unknown = self.reuse.unknown() if keeps and node.first else None
                if not keeps:
                    output = self.blocks.run_whole(forward)
                elif node.children:
                    output = self.reuse.kept(partial(self.blocks.run, forward, node.first, node.stop, kept, None), mode)
                else:
                    output, drift, path = self.blocks.run_to_loss(forward, node.first, kept, mode.unknown)
                    paths.add(path)
            result.count(mode)
            if not node.children:
                leaves, spec = tree_flatten(output)
                loss = group_losses(Activations(leaves, [False] * len(leaves), spec), 1)
                found.append((loss, drift.reshape(1)))
            yield waiting, output

        tree.walk(alone, None, together=False)
        numbers = read_together([loss for loss, _ in found] + [drift for _, drift in found])
        losses = [loss for (loss,) in numbers[: len(found)]]
        return losses, max((drift for (drift,) in numbers[len(found) :]), default=0.0), paths

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
