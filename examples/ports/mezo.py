"""MeZO (Malladi et al., arXiv 2305.17333, algorithm 1): its loop in place, with blockzo's operations in place of its own.

The paper restores by a third pass over the weights. Here the restore rides along with the update: three passes a step, not four.
"""

from __future__ import annotations

from collections.abc import Callable

import blockzo as bz
from blockzo.ops.params import Params


def mezo_step(params: Params, loss: Callable[[], float], seed: int, lr: float, eps: float = 1e-3) -> float:
    """One step on a batch that `loss` evaluates.

    Returns:
        The projected gradient, which with the seed is all that a step is.
    """
    z = bz.Noise(seed, "gaussian")
    bz.perturb_(params, z, eps)
    ahead = loss()
    bz.perturb_(params, z, -2 * eps)
    slope = (ahead - loss()) / (2 * eps)
    # the weights are at w - eps z: one pass takes that back and steps
    bz.update_(params, z, [lr * slope - eps])
    return slope
