"""Sparse MeZO (Liu et al., arXiv 2402.15751): MeZO on the weights of small magnitude alone.

A threshold for each matrix is taken once from the pretrained weights. The mask of a step is that of the weights as they are then.
It is read while the noise is made: a step takes a byte a weight beside the model, and weights outside the mask keep their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

import blockzo as bz


def thresholds(model: nn.Module, density: float = 0.25) -> dict[str, float]:
    """Of every matrix the magnitude below which that part of its weights lies; vectors are trained whole."""
    matrices = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    return {
        name: float(p.abs().flatten().kthvalue(max(1, int(density * p.numel()))).values) for name, p in matrices.items()
    }


def sparse_mezo_step(
    model: nn.Module, loss: Callable[[], Tensor], bounds: Mapping[str, float], seed: int, lr: float, eps: float = 1e-3
) -> float:
    """One step on a batch that `loss` evaluates; returns the projected gradient."""
    params = dict(model.named_parameters())
    mask: dict[str, float | Tensor] = {name: params[name].detach().abs() <= bound for name, bound in bounds.items()}
    z, losses = bz.Noise(seed, "gaussian"), []
    for sign in (1, -1):
        with bz.perturbed(model, z, [0], [sign * eps], per_weight=mask):
            losses.append(float(loss()))
    slope = (losses[0] - losses[1]) / (2 * eps)
    bz.update_(model, z, [lr * slope], per_weight=mask)
    return slope
