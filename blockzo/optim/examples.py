"""A direction an example: each example of a batch is evaluated along directions of its own, so that one pass over the batch gives
as many slopes as it has examples.

g = sum_b w_b sum_k s_bk z_bk: s_bk is the slope of example b's own loss along its own z_bk, w_b its share in the batch's loss.
It is unbiased for the gradient of the batch. Its squared error is about d sum_b w_b^2 |g_b|^2 where directions that all examples
share have d |sum_b w_b g_b|^2 (docs/methods.md).

Example b of B has the numbers k B + b of the noise for the tree's directions k = 0, 1, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockzo.methods import Method, Scalars
from blockzo.methods.tree import EvaluationTree, Node, each_of
from blockzo.optim.evaluation import Evaluation, check_loss, joined
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.micro_batches import Part, Weight, mean_losses, rows_in, weighted_sums
from blockzo.perturb import PerturbedForward
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import LossFunction, evaluation_mode
from blockzo.perturb.rows import row_of_each, rows_of

ExecutorOf = Callable[[Sequence[Sequence[int]]], PerturbedExecutor]
"""Numbers of the noise's directions for each block -> what evaluates along them."""
ROUNDING, ROUNDING_16 = 1e-4, 2e-2
"""Relative difference of a batch's loss from the mean of its examples' that is let pass, of float32 and of 16-bit weights."""


@dataclass(frozen=True)
class Taken:
    """A micro-batch by its examples.

    Attributes:
        rows: of the batch. kept: those that have a term in the loss. weights: share of each of these in the loss of all.
    """

    batch: Any
    rows: int
    kept: list[int]
    weights: list[float]


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
        count = rows_in(part.batch)
        weights = [float(weight(rows_of(part.batch, [row], count))) for row in range(count)]
        total = math.fsum(weights)
        kept = [row for row, own in enumerate(weights) if own]
        found.append(Taken(part.batch, count, kept, [weights[row] / total * part.weight / whole for row in kept]))
    if not any(taken.kept for taken in found):
        raise ValueError("no example of the batch has a label token or another term of the loss; expected one at least")
    return found


def taken_apart(batch: Any, rows: int) -> tuple[bool, ...]:
    """Of every tensor of a batch, whether it has a row an example."""
    leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    return tuple(bool(leaf.dim()) and leaf.shape[0] == rows for leaf in leaves if isinstance(leaf, Tensor))


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
    """

    def __init__(self, blocks: Blocks, loss_fn: LossFunction, weight: Weight) -> None:
        self.blocks, self.loss_fn, self.weight = blocks, loss_fn, weight
        self._checked: set[tuple[bool, ...]] = set()
        """Which tensors were taken apart, in batches whose losses were looked at."""

    def run(self, tree: EvaluationTree, parts: Sequence[Part], executor: ExecutorOf) -> Evaluation:
        """Losses are those of the batch; `examples` has each one's own."""
        found = apart(parts, self.weight)
        count = sum(len(taken.kept) for taken in found)
        along = executor([[*range(k * count)] for k in tree.directions])
        # another number of rows may be the length of a tensor that has none, such as class weights
        forms = {taken_apart(part.batch, taken.rows) for part, taken in zip(parts, found, strict=True)}
        if not forms <= self._checked:
            self._check(parts, found, along)
            self._checked |= forms
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

        found = executor.run_each(tree, partial(self.loss_fn, model, batch), own, len(taken.kept))
        losses = [found.losses[at : at + leaves] for at in range(0, len(found.losses), leaves)]
        found.losses = mean_losses(losses, taken.weights)
        return found, losses

    def _check(self, parts: Sequence[Part], found: Sequence[Taken], executor: PerturbedExecutor) -> None:
        """Is the loss of the batch the mean of its examples' losses?

        Raises:
            ValueError: examples see each other in it, as in a contrastive loss; each along its own direction would mean nothing.
        """
        model, blocks = self.blocks.model, len(self.blocks)
        whole, total = 0.0, math.fsum(part.weight for part in parts)
        for part, taken in zip(parts, found, strict=True):
            with evaluation_mode(model):
                value = self.blocks.run_whole(partial(self.loss_fn, model, part.batch))
            if isinstance(value, Tensor) and value.numel() == taken.rows > 1:
                # a loss an example already
                terms = [value.reshape(-1)[row] * weight for row, weight in zip(taken.kept, taken.weights, strict=True)]
                whole += math.fsum(map(float, terms))
            else:
                whole += part.weight / total * float(value)
        check_loss(whole, ())
        unmoved, own_terms = Node(0, blocks), []
        for taken in found:
            if taken.kept:
                tree = EvaluationTree(blocks, (unmoved,) * len(taken.kept))
                try:
                    own = self._losses(executor, tree, taken, 1)[1]
                except (torch.OutOfMemoryError, MemoryError):
                    raise
                except Exception as error:
                    raise ValueError(
                        f"the loss function takes the batch and fails on an example alone ({type(error).__name__}: "
                        f"{str(error)[:200]}); with per_example=True each is evaluated by itself, as a batch of one row. "
                        "The step was not applied: use per_example=False"
                    ) from error
                own_terms += [weight * loss for weight, (loss,) in zip(taken.weights, own, strict=True)]
        apart = math.fsum(own_terms)
        half = any(parameter.dtype != torch.float32 for parameter in model.parameters())
        if not abs(apart - whole) <= (ROUNDING_16 if half else ROUNDING) * max(abs(apart), abs(whole), 1e-3):
            raise ValueError(
                f"the loss of the batch is {whole:.7g}, the mean of its examples' losses {apart:.7g}; with per_example=True "
                "examples must not see each other in the loss (contrastive losses, batch statistics), and rows_of must say what "
                "a batch's loss is a mean over. The step was not applied: use per_example=False"
            )
