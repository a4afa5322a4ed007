"""LOZO (Chen et al., arXiv 2410.07698): matrices move along U V^T, of a low rank; V stays for nu steps, U is new in every step.

So the steps of an interval lie in one subspace, and their sum is (sum of slopes times U) V^T. The factors are those of the noise
contract: U is the row factor of the step's seed, V the column factor of the interval's. What is no matrix moves along full noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.contract import is_low_rank


@torch.no_grad()
def move_(model: nn.Module, seed: int, lazy_seed: int, scale: float, rank: int) -> None:
    """w <- w + scale * U V^T / sqrt(rank)."""
    u, v, params = (
        bz.Noise(seed, "gaussian", rank),
        bz.Noise(lazy_seed, "gaussian", rank),
        dict(model.named_parameters()),
    )
    low = {name: p for name, p in params.items() if p.requires_grad and is_low_rank(p.shape, rank)}
    for name, p in low.items():
        p.addmm_(u.factors(name, p.shape)[0].to(p), v.factors(name, p.shape)[1].to(p).t(), alpha=scale / rank**0.5)
    bz.perturb_({name: p for name, p in params.items() if p.requires_grad and name not in low}, u, scale)


def lozo_step(
    model: nn.Module,
    loss: Callable[[], Tensor],
    step: int,
    lr: float,
    eps: float = 1e-3,
    rank: int = 2,
    nu: int = 50,
    seed: int = 0,
) -> float:
    """Step number `step` on a batch that `loss` evaluates; returns the projected gradient.

    1 / sqrt(rank) stands in the perturbation and in the update, so the estimate is <g, U V^T> U V^T / rank.
    """
    own, lazy = (seed << 32) + step, (seed << 32) + (1 << 31) + step // nu
    move_(model, own, lazy, eps, rank)
    ahead = float(loss())
    move_(model, own, lazy, -2 * eps, rank)
    slope = (ahead - float(loss())) / (2 * eps)
    move_(model, own, lazy, eps - lr * slope, rank)
    return slope
