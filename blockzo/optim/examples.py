"""A direction an example: each example of a batch is evaluated along directions of its own, so that one pass over the batch gives
as many slopes as it has examples.

g = sum_b w_b sum_k s_bk z_bk: s_bk is the slope of example b's own loss along its own z_bk, w_b its share in the batch's loss.
It is unbiased for the gradient of the batch. Its squared error is about d sum_b w_b^2 |g_b|^2 where directions that all examples
share have d |sum_b w_b g_b|^2 (docs/methods.md).

Example b of B has the numbers k B + b of the noise for the tree's directions k = 0, 1, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from blockzo.methods import Method, Scalars
from blockzo.methods.tree import BlockMove, EvaluationTree, Node, each_of
from blockzo.optim.evaluation import Evaluation, joined
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.micro_batches import Part, Weight, mean_losses, rows_in, weighted_sums
from blockzo.optim.separate import Halves, Pair, Separate, Taken
from blockzo.perturb import PerturbedForward
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import LossFunction
from blockzo.perturb.rows import row_of_each, rows_of

ExecutorOf = Callable[[Sequence[Sequence[int]]], PerturbedExecutor]
"""Numbers of the noise's directions for each block -> what evaluates along them."""


def apart(parts: Sequence[Part], weight: Weight, whole: float | None = None) -> list[Taken]:
    """Every micro-batch by its examples; those without a label token are left out.

    Args:
        whole: weight of all micro-batches of the step, where these are some of them.

    Raises:
        ValueError: a batch cannot be taken apart.
    """
    whole = math.fsum(part.weight for part in parts) if whole is None else whole
    found = []
    for part in parts:
        weights = weights_of(part.batch, weight)
        total = math.fsum(weights)
        kept = [row for row, own in enumerate(weights) if own]
        found.append(
            Taken(part.batch, len(weights), kept, [weights[row] / total * part.weight / whole for row in kept])
        )
    if not any(taken.kept for taken in found):
        raise ValueError("no example of the batch has a label token or another term of the loss; expected one at least")
    return found


def weights_of(batch: Any, weight: Weight) -> list[float]:
    """Of each example's loss in the batch's."""
    count = _examples_in(batch)
    return [float(weight(rows_of(batch, [row], count))) for row in range(count)]


def _examples_in(batch: Any) -> int:
    try:
        return rows_in(batch)
    except ValueError:
        raise ValueError(
            f"a batch of type {type(batch).__name__} cannot be taken apart: it holds no tensor with a row an example; with "
            "per_example=True expected a tensor, or tuples, lists and mappings of tensors"
        ) from None


def numbers(directions: Sequence[int], example: int, examples: int) -> list[list[int]]:
    """Of each block, the numbers of an example's directions in the noise; `directions`: how many the tree has of each block."""
    return [[k * examples + example for k in range(count)] for count in directions]


def scalars_of(
    method: Method, losses: Sequence[Sequence[float]], weights: Sequence[float], eps: Sequence[float]
) -> Scalars:
    """For every block, number of a direction -> its scalar, all examples together.

    Args:
        losses: examples x leaves.
        weights: share of every example in the loss.
    """
    each, count = method.of_examples(losses, eps), len(losses)
    return [
        {
            k * count + example: weights[example] * each[example][block][k]
            for k in each[0][block]
            for example in range(count)
        }
        for block in range(len(eps))
    ]


class Examples:
    """Evaluates every example along directions of its own, several at once.

    Args:
        weight: of an example's loss in the batch's.
        separate: what is known of the loss; where None, it is found out at the first run.
    """

    def __init__(self, blocks: Blocks, loss_fn: LossFunction, weight: Weight, separate: Separate | None = None) -> None:
        self.blocks, self.loss_fn, self.weight = blocks, loss_fn, weight
        self.separate = separate or Separate(blocks.model)

    def run(self, tree: EvaluationTree, parts: Sequence[Part], executor: ExecutorOf) -> Evaluation:
        """Losses are those of the batch; `examples` has each one's own."""
        found = apart(parts, self.weight)
        count = sum(len(taken.kept) for taken in found)
        along = executor([[*range(k * count)] for k in tree.directions])
        due = self.separate.due(found)
        for taken in due:
            self._look(taken, along)
        self.separate.passed(found, due)
        every: list[tuple[Evaluation, list[list[float]]]] = []
        done = 0
        for taken in found:
            numbers = range(done, done + len(taken.kept))
            done += len(taken.kept)
            if taken.kept:
                every.append(self._losses(along, each_of(tree, numbers, count), taken, tree.leaves))
        weights = [weight for taken in found for weight in taken.weights]
        own = [losses for _, examples in every for losses in examples]
        result = joined([evaluation for evaluation, _ in every], [math.fsum(t.weights) for t in found if t.kept])
        result.losses, result.sums = mean_losses(own, weights), weighted_sums(own, weights)
        result.examples = own, weights
        return result

    def _losses(
        self, executor: PerturbedExecutor, tree: EvaluationTree, taken: Taken, leaves: int
    ) -> tuple[Evaluation, list[list[float]]]:
        """Of a tree that has so many leaves an example: what it gave, and losses of every example."""
        model, batch = self.blocks.model, taken.batch

        def own(places: Sequence[int], mode: PerturbedForward) -> Any:
            rows = [taken.kept[leaf // leaves] for leaf in places]
            return self.loss_fn(model, row_of_each(batch, rows, taken.rows, mode))

        executor.reuse.meet(batch)
        found = executor.run_each(tree, partial(self.loss_fn, model, batch), own, len(taken.kept))
        losses = [found.losses[at : at + leaves] for at in range(0, len(found.losses), leaves)]
        found.losses = mean_losses(losses, taken.weights)
        return found, losses

    def _look(self, taken: Taken, executor: PerturbedExecutor) -> None:
        """Is the loss of this batch that of its examples?

        Raises:
            ValueError: examples see each other in it, as in a contrastive loss; each along its own direction would mean nothing.
        """
        blocks = len(self.blocks)
        all_of_them = tuple(BlockMove(block, 0, 1) for block in range(blocks) if executor.members[block])
        nodes = Node(0, blocks), Node(0, blocks, all_of_them)
        halves = Halves()

        def whole() -> Any:
            with halves:
                return taken.mean(self.loss_fn(self.blocks.model, taken.batch))

        # alone, since a loss of several rows may not run in groups and those of single ones still do
        together = Pair(*(executor.run(EvaluationTree(blocks, (node,)), whole).losses[0] for node in nodes))
        try:
            tree = EvaluationTree(blocks, nodes * len(taken.kept))
            own = self._losses(executor, tree, taken, len(nodes))[1]
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(
                f"the loss function takes the batch and fails on an example alone ({type(error).__name__}: "
                f"{str(error)[:200]}); with per_example=True each is evaluated by itself, as a batch of one row. "
                "The step was not applied: use per_example=False"
            ) from error
        self.separate.compare(taken, together, [Pair(*losses) for losses in own], halves.seen)
