"""FZOO (Dang et al., arXiv 2506.09034): forward differences along N sign vectors, over the deviation of their losses.

All N perturbed forwards run as one batch; the paper batches them by hand for its own models.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import stdev

import torch
from torch import Tensor, nn

import blockzo as bz


@torch.no_grad()
def fzoo_step(
    model: nn.Module, loss: Callable[[], Tensor], seed: int, lr: float, eps: float = 1e-3, n: int = 8
) -> list[float]:
    """One step: w <- w - lr / (n eps sigma) * sum_i (l_i - l_0) u_i.

    Args:
        loss: evaluates the model on the step's batch.

    Returns:
        The n coefficients of the update.
    """
    u = bz.Noise(seed, "rademacher")
    base = float(loss())
    losses = bz.perturbed_losses(model, u, range(n), [eps] * n, loss).tolist()
    coefficients = [lr * (moved - base) / (n * eps * stdev(losses)) for moved in losses]
    bz.update_(model, u, coefficients)
    return coefficients
