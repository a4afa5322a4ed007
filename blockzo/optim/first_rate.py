"""A first learning rate, from a few losses: how strongly the loss curves along random directions bounds it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from blockzo.methods.auto import Auto
from blockzo.methods.base import Method
from blockzo.methods.whole import SPSA
from blockzo.optim.step import step_seed
from blockzo.optim.zo import ZO
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import as_tensor, evaluation_mode

DIRECTIONS = 2
"""Of each batch."""
NOISE_ROWS = 300
"""Rows at which half of a batch's gradient is what all batches share: of 16 rows 5 %, as on SST-2 (docs/lab/planner.md)."""
ALONG_GRADIENT = 1 / 16
"""Curvature along the gradient over that along a random direction, where nothing is known (docs/planner.md)."""
PROBES = 1 << 48
"""Step numbers of the probes' seeds; no run gets so far."""


def suggest_lr(zo: ZO, batches: Sequence[Any], rows: int = 16) -> float:
    """A cautious learning rate for `zo`'s method, model, loss and eps; no weight is changed.

    With slopes s and curvatures c of the loss along random directions of the whole model, E = mean s^2 and T = mean c weighted
    by s^2, one direction lowers the loss most at rho / T, P at rho P / (T + (P - 1) S) (docs/planner.md). Here rho is
    rows / (rows + 300), S is T / 16, and T is never below E, with its standard error on top: curvature is known badly.
    A method that divides by something of its own (FZOO) is tried once, and its rate scaled by the size of its scalars.

    Args:
        zo: its `lr` does not count.
        batches: some of the first ones; four are enough. Each costs 5 forwards.
        rows: examples of a batch.

    Returns:
        The rate, with two digits.

    Raises:
        ValueError: the method plans its own rates; there is no batch; the loss does not change along any direction.
    """
    if isinstance(zo.method, Auto):
        raise ValueError('method "auto" plans a rate for every block; its lr is a factor: expected 1, or no lr')
    if not batches:
        raise ValueError("no batches; expected a few of the first ones")
    slopes, bends = zip(*(pair for k, batch in enumerate(batches) for pair in _probed(zo, batch, k)), strict=True)
    energy = statistics.fmean(s * s for s in slopes)
    if energy == 0.0:
        raise ValueError("the loss is the same along every direction; expected one that the weights change: give lr")
    weighted = math.fsum(s * s * c for s, c in zip(slopes, bends, strict=True)) / (energy * len(slopes))
    error = statistics.stdev(bends) / math.sqrt(len(bends))
    curvature = max(weighted, energy) + error
    directions = min(count for count in zo.method.tree(len(zo.blocks)).directions if count)
    rate = rows / (rows + NOISE_ROWS) * directions / (curvature * (1.0 + (directions - 1) * ALONG_GRADIENT))
    if not zo.method.linear:
        rate *= math.sqrt(energy / (directions * _size(zo, batches[0])))
    return float(f"{rate:.1e}")


def _probed(zo: ZO, batch: Any, number: int) -> list[tuple[float, float]]:
    """(slope, curvature) along DIRECTIONS directions of the whole model."""
    eps = max(zo.eps)
    losses = _like(zo, SPSA(DIRECTIONS), Blocks(zo.model, []), [eps], PROBES + number).estimate(batch).losses
    with evaluation_mode(zo.model):
        here = float(as_tensor(zo.loss_fn(zo.model, batch)))
    pairs = zip(losses[::2], losses[1::2], strict=True)
    return [((up - down) / (2 * eps), (up + down - 2 * here) / eps**2) for up, down in pairs]


def _size(zo: ZO, batch: Any) -> float:
    """Sum of squares of a block's scalars in a step, mean over blocks."""
    assert not isinstance(zo.method, Auto)
    found = _like(zo, zo.method, zo.blocks, zo.eps, PROBES - 1).estimate(batch).scalars
    return statistics.fmean(math.fsum(s * s for s in block.values()) for block in found if block)


def _like(zo: ZO, method: Method, blocks: Blocks, eps: Sequence[float], number: int) -> ZO:
    """Another optimiser of the same model and loss, that writes no weight."""
    return ZO(
        zo.model,
        zo.loss_fn,
        method,
        blocks,
        lr=0.0,
        eps=eps,
        distribution=zo.distributions[0],
        rank=zo.rank,
        seed=step_seed(zo.seed, number),
        max_group=zo.max_group,
        rows_of=zo.rows_of,
        independent_ranks=True,
    )
