"""Scalars of every example of a batch, for clipping per example (unit "example" of `PrivacySettings`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blockzo.methods.base import Method
from blockzo.methods.tree import EvaluationTree
from blockzo.optim.evaluation import Evaluation, joined
from blockzo.optim.examples import rows_of
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.micro_batches import Part
from blockzo.perturb.activations import Activations

log = logging.getLogger("blockzo.federated")


class ExampleExecutor(PerturbedExecutor):
    """Evaluates a tree whose leaves give one loss a row; `losses` of the evaluation are their means.

    Attributes: `rows`: leaves x rows of the last run.
    """

    def run(self, tree: EvaluationTree, forward: Callable[[], Any]) -> Evaluation:
        self.rows: list[list[float]] = [[] for _ in range(tree.leaves)]
        return super().run(tree, forward)

    def run_parts(self, tree: EvaluationTree, parts: Sequence[Part], loss: Callable[[Any], Any]) -> Evaluation:
        rows: list[list[list[float]]] = []

        def noted(part: Part) -> Evaluation:
            found = self.run(tree, partial(loss, part.batch))
            rows.append(self.rows)
            return found

        result = joined([noted(part) for part in parts], [part.weight for part in parts])
        self.rows = [[loss for part in rows for loss in part[leaf]] for leaf in range(tree.leaves)]
        return result

    def _losses(self, output: Activations, groups: int) -> Tensor:
        value = output.leaves[0] if len(output.leaves) == 1 else None
        own = output.own == [True]
        if not isinstance(value, Tensor) or value.dim() != 1 + own:
            shape = tuple(value.shape[own:]) if isinstance(value, Tensor) else None
            raise ValueError(
                f"loss_fn returned {'no tensor' if shape is None else f'shape {shape}'}; clipping per example needs the loss of "
                "every row, shape (rows,): pass such a loss_fn to the Worker (cross_entropy with reduction='none'), or take "
                'privacy unit "client"'
            )
        found = value.detach() if own else value.detach().expand(groups, -1)
        return found.to(torch.float32, copy=True)

    def _loss(self, leaf: int, value: Any) -> float:
        losses = self.rows[leaf] = list(value)
        found = sum(losses) / max(1, len(losses))
        # of a row that is not finite only that row's scalars are lost; the mean leaves in no private run
        return found if math.isfinite(found) else 0.0


def example_scalars(method: Method, rows: Sequence[Sequence[float]], eps: Sequence[float]) -> list[list[float]]:
    """For every example, scalars in the order of a reply (blocks, then directions): `method`'s rule on that example's losses.

    The rule is linear in the losses (not FZOO's), so that unclipped scalars have the batch's own as their mean. An example with a
    loss that is not finite has NaN for each of its scalars, and nobody else's are touched.
    """
    count = sum(len(block) for block in method.scalars([0.0] * len(rows), eps))
    return [
        [s for block in method.scalars(losses, eps) for s in block.values()]
        if all(map(math.isfinite, losses))
        else [math.nan] * count
        for losses in zip(*rows, strict=True)
    ]


def losses_of_rows(run: Callable[[Any], list[list[float]]], batch: Any, rows: int) -> list[list[float]]:
    """Losses (leaves x rows) of a batch, also where a row makes the evaluation fail: such a row has NaN, others what they have.

    A failure is a function of single rows where rows do not see each other, so each is tried alone; then the batch is run with a
    sound row in the place of each that failed. So the others' losses are, to the bit, those of a batch in which nothing failed.

    Args:
        run: batch -> leaves x rows.

    Raises:
        Exception: that of the batch, where all rows fail.
    """

    def of(part: Any, count: int) -> list[list[float]]:
        found = run(part)
        if any(len(losses) != count for losses in found):
            raise ValueError(f"a batch of {count} rows gave {len(found[0])} losses; expected one a row")
        return found

    def tried(row: int) -> list[list[float]] | None:
        try:
            return of(rows_of(batch, [row], rows), 1)
        except Exception as error:
            log.warning("row %d of the batch fails: %s", row, error)
            return None

    try:
        return of(batch, rows)
    except Exception as error:
        if rows < 2:
            raise
        log.warning("a batch of %d rows failed (%s); each is tried alone", rows, error)
        alone = [tried(row) for row in range(rows)]
        sound = [row for row in range(rows) if alone[row] is not None]
        if not sound:
            raise
    try:
        found = of(rows_of(batch, [row if row in sound else sound[0] for row in range(rows)], rows), rows)
    except Exception as error:
        log.warning("rows that are sound alone fail together (%s); each counts as it is alone", error)
        leaves = len(alone[sound[0]] or ())
        found = [[losses[leaf][0] if losses else math.nan for losses in alone] for leaf in range(leaves)]
    return [[loss if row in sound else math.nan for row, loss in enumerate(losses)] for losses in found]


def losses_of_row(
    run: Callable[[Any], list[list[float]]], batch: Any, row: int, rows: int, leaves: int
) -> list[list[float]]:
    """Losses (leaves x 1) of one row by itself; NaN where it fails. Nothing of other rows shows in them.

    Args:
        run: batch -> leaves x rows, along directions that are this row's own.
    """
    try:
        found = run(rows_of(batch, [row], rows))
        if any(len(losses) != 1 for losses in found):
            raise ValueError(f"a batch of one row gave {len(found[0])} losses; expected one")
        return found
    except Exception as error:
        log.warning("row %d of the batch fails: %s", row, error)
        return [[math.nan]] * leaves


def scattered(scalars: Sequence[float], places: Sequence[Sequence[int]], numbered: Sequence[int]) -> list[float]:
    """Scalars of one example (blocks, then directions) at the places of its own directions, zeros at those of others.

    Args:
        places: of each block, numbers of its directions.
        numbered: numbers that each block has.
    """
    found, values = [], iter(scalars)
    for own, width in zip(places, numbered, strict=True):
        block = [0.0] * width
        for place, value in zip(own, values, strict=False):
            block[place] = value
        found += block
    return found
