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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blockzo.methods import Method, Scalars
from blockzo.methods.tree import EvaluationTree
from blockzo.optim.evaluation import Evaluation, joined
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.micro_batches import Part, Weight, rows_in
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import LossFunction, evaluation_mode

ExecutorOf = Callable[[Sequence[Sequence[int]]], PerturbedExecutor]
"""Numbers of the noise's directions for each block -> what evaluates along them."""
ROUNDING, ROUNDING_16 = 1e-4, 2e-2
"""Relative difference of a batch's loss from the mean of its examples' that is let pass, of float32 and of 16-bit weights."""


def apart(parts: Sequence[Part], weight: Weight) -> list[Part]:
    """Every example as a part of its own, with its share in the loss of all; those without a label token are left out.

    Raises:
        ValueError: a batch cannot be taken apart.
    """
    whole = math.fsum(part.weight for part in parts)
    found = []
    for part in parts:
        count = rows_in(part.batch)
        rows = [rows_of(part.batch, [row], count) for row in range(count)]
        weights = [float(weight(row)) for row in rows]
        total = math.fsum(weights)
        found += [Part(row, own / total * part.weight / whole) for row, own in zip(rows, weights, strict=True) if own]
    if not found:
        raise ValueError("no example of the batch has a label token or another term of the loss; expected one at least")
    return found


def rows_of(batch: Any, places: Sequence[int], rows: int) -> Any:
    """The batch of the rows at `places`, from a batch of `rows`: of every tensor or list in it (in tuples, lists and mappings
    too) whose first dimension is that number, these places; all else as it is.

    Raises:
        ValueError: nothing in it has so many places.
    """
    found = 0

    def taken(value: Any) -> Any:
        nonlocal found
        if isinstance(value, Tensor):
            if not value.dim() or value.shape[0] != rows:
                return value
            found += 1
            return value[list(places)]
        if isinstance(value, Mapping):
            return type(value)({key: taken(held) for key, held in value.items()})  # type: ignore[call-arg]
        if isinstance(value, list) and len(value) == rows and not any(isinstance(held, Tensor) for held in value):
            found += 1
            return [value[place] for place in places]
        if isinstance(value, (list, tuple)):
            held = map(taken, value)
            return type(value)(*held) if hasattr(value, "_fields") else type(value)(held)
        return value

    result = taken(batch)
    if not found:
        raise ValueError(f"nothing in a batch of {rows} rows has that many places; it cannot be taken apart")
    return result


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
    """Evaluates every example by itself, along directions of its own.

    Args:
        weight: of an example's loss in the batch's.
    """

    def __init__(self, blocks: Blocks, loss_fn: LossFunction, weight: Weight) -> None:
        self.blocks, self.loss_fn, self.weight = blocks, loss_fn, weight
        self._checked = False

    def run(self, tree: EvaluationTree, parts: Sequence[Part], executor: ExecutorOf) -> Evaluation:
        """Losses are those of the batch; `examples` has each one's own."""
        found = apart(parts, self.weight)
        if not self._checked:
            self._check(parts, found)
            self._checked = True
        every = []
        for example, part in enumerate(found):
            along = executor(numbers(tree.directions, example, len(found)))
            every.append(along.run(tree, partial(self.loss_fn, self.blocks.model, part.batch)))
        weights = [part.weight for part in found]
        result = joined(every, weights)
        result.examples = [evaluation.losses for evaluation in every], weights
        return result

    def _check(self, parts: Sequence[Part], found: Sequence[Part]) -> None:
        """Is the loss of the batch the mean of its examples' losses?

        Raises:
            ValueError: examples see each other in it, as in a contrastive loss; each along its own direction would mean nothing.
        """
        model = self.blocks.model

        def mean(of: Sequence[Part]) -> float:
            total = math.fsum(part.weight for part in of)
            losses = [float(self.blocks.run_whole(partial(self.loss_fn, model, part.batch))) for part in of]
            return math.fsum(part.weight / total * loss for part, loss in zip(of, losses, strict=True))

        with evaluation_mode(model):
            whole, apart = mean(parts), mean(found)
        half = any(parameter.dtype != torch.float32 for parameter in model.parameters())
        if not abs(apart - whole) <= (ROUNDING_16 if half else ROUNDING) * max(abs(apart), abs(whole), 1e-3):
            raise ValueError(
                f"the loss of the batch is {whole:.7g}, the mean of its examples' losses {apart:.7g}; with per_example=True "
                "examples must not see each other in the loss (contrastive losses, batch statistics), and rows_of must say what "
                "a batch's loss is a mean over. The step was not applied: use per_example=False"
            )
