"""A first learning rate, from a few losses: how strongly the loss curves along random directions bounds it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from blockzo.methods.auto import Auto
from blockzo.methods.base import Method
from blockzo.methods.block_state import SHARPNESS
from blockzo.methods.decoupled import Decoupled, slopes_and_curvatures
from blockzo.optim.examples import weights_of
from blockzo.optim.step import step_seed
from blockzo.optim.zo import ZO
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import LossFunction

DIRECTIONS = 2
"""Of each batch."""
NOISE_ROWS = 300
"""Rows at which half of a batch's gradient is what all batches share: of 16 rows 5 %, as on SST-2 (docs/lab/planner.md)."""
PROBES = 1 << 48
"""Step numbers of the probes' seeds; no run gets so far."""


def suggest_lr(zo: ZO, batches: Sequence[Any], rows: int = 16) -> float:
    """A cautious learning rate for `zo`'s method, model, loss and eps; no weight is changed.

    With slopes s and curvatures c of the loss along random directions of the whole model, E = mean s^2 and T = mean c weighted
    by s^2, one direction lowers the loss most at rho / T, P at rho P / (T + (P - 1) S) (docs/planner.md). Here rho is
    rows / (rows + 300), S is T / 16, as where the planner knows nothing, and T is never below E, with its standard error on top:
    curvature is known badly.
    A method that divides by something of its own (FZOO) is tried once, and its rate scaled by the size of its scalars.

    Args:
        zo: its `lr` does not count.
        batches: some of the first ones, each as `zo.step` takes it, in micro-batches or whole; four are enough. Each costs 5
            forwards. Where the loss is one number an example (`per_example`), their mean by `rows_of` counts.
        rows: examples of a batch.

    Returns:
        The rate, with two digits.

    Raises:
        ValueError: the method plans its own rates; there is no batch; a loss is not finite; the loss does not change along any
            direction.
    """
    if isinstance(zo.method, Auto):
        raise ValueError('method "auto" plans a rate for every block; its lr is a factor: expected 1, or no lr')
    if not batches:
        raise ValueError("no batches; expected a few of the first ones")
    slopes, bends = zip(*_probed(zo, batches), strict=True)
    energy = _moving(statistics.fmean(s * s for s in slopes))
    weighted = math.fsum(s * s * c for s, c in zip(slopes, bends, strict=True)) / (energy * len(slopes))
    error = statistics.stdev(bends) / math.sqrt(len(bends))
    curvature = max(weighted, energy) + error
    directions = min(count for count in zo.method.tree(len(zo.blocks)).directions if count)
    rate = rows / (rows + NOISE_ROWS) * directions / (curvature * (1.0 + (directions - 1) / SHARPNESS))
    if not zo.method.linear:
        rate *= math.sqrt(energy / (directions * _moving(_size(zo, zo.method, batches[0]))))
    return float(f"{rate:.1e}")


def _probed(zo: ZO, batches: Sequence[Any]) -> list[tuple[float, float]]:
    """(slope, curvature) along DIRECTIONS directions of the whole model on every batch: the planner's probes of one block."""
    method, eps = Decoupled((DIRECTIONS,), centre=True), max(zo.eps)
    probe = _like(zo, _mean_of(zo) if zo.per_example else zo.loss_fn, method, Blocks(zo.model, []), [eps])
    found = []
    for number, batch in enumerate(batches):
        probe.seed = step_seed(zo.seed, PROBES + number)
        found += slopes_and_curvatures(probe.estimate(batch).losses, eps)
    return found


def _mean_of(zo: ZO) -> LossFunction:
    """Its loss, of one number an example the mean by their weights: directions here are shared by all."""

    def mean(model: nn.Module, batch: Any) -> Any:
        found = zo.loss_fn(model, batch)
        if not isinstance(found, Tensor) or found.ndim == 0:
            return found
        weights = weights_of(batch, zo.rows_of)
        if len(weights) != found.numel():
            # one number of all examples
            return found.mean()
        # the loss of an example without a term may be anything
        kept = [row for row, own in enumerate(weights) if own]
        shares = found.new_tensor([weights[row] for row in kept])
        return (found.reshape(-1)[kept] * shares).sum() / shares.sum()

    return mean


def _size(zo: ZO, method: Method, batch: Any) -> float:
    """Sum of squares of a block's scalars in a step as the run takes it, mean over blocks."""
    once = _like(zo, zo.loss_fn, method, zo.blocks, zo.eps, zo.per_example)
    once.seed = step_seed(zo.seed, PROBES - 1)
    found = once.estimate(batch).scalars
    return statistics.fmean(math.fsum(s * s for s in block.values()) for block in found if block)


def _moving(squares: float) -> float:
    """A mean of squares of scalars; refused where all of them are 0."""
    if squares == 0.0:
        raise ValueError("the loss is the same along every direction; expected one that the weights change: give lr")
    return squares


def _like(
    zo: ZO, loss_fn: LossFunction, method: Method, blocks: Blocks, eps: Sequence[float], per_example: bool = False
) -> ZO:
    """Another optimiser of the same model and evaluations, that writes no weight."""
    return ZO(
        zo.model,
        loss_fn,
        method,
        blocks,
        lr=0.0,
        eps=eps,
        distribution=zo.distributions[0],
        rank=zo.rank,
        moved=zo.moved,
        max_group=zo.max_group,
        rows_of=zo.rows_of,
        per_example=per_example,
        independent_ranks=True,
    )
