"""Scalars of every example of a batch, for clipping per example (unit "example" of `PrivacySettings`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blockzo.estimators import Method
from blockzo.evaluate import Evaluation, PerturbedExecutor, joined
from blockzo.groups import Activations
from blockzo.micro_batches import Part
from blockzo.tree import EvaluationTree


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
        return sum(losses) / max(1, len(losses))


def example_scalars(method: Method, rows: Sequence[Sequence[float]], eps: Sequence[float]) -> list[list[float]]:
    """For every example, scalars in the order of a reply (blocks, then directions): `method`'s rule on that example's losses.

    The rule is linear in the losses (not FZOO's), so that unclipped scalars have the batch's own as their mean.
    """
    return [[s for block in method.scalars(losses, eps) for s in block.values()] for losses in zip(*rows, strict=True)]
