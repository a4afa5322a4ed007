"""MeZO as its paper states it (Malladi et al., arXiv 2305.17333, Algorithm 1), in plain torch: the baseline for wall time.

Written from the description: the generator is seeded, and each parameter's noise is drawn again by `torch.normal` in the same
order wherever it is needed: weights + eps z, a forward, - 2 eps z, a forward, + eps z, then the update with the same z. The
noise is therefore made four times a step, and weights are written four times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.optim.step import step_seed

Use = Callable[[Tensor, Tensor], object]
Draw = Callable[[int, list[Tensor], Use], None]
"""(seed, parameters, use): calls use(parameter, z) for every parameter with the direction that the seed stands for."""


def normal_noise(seed: int, parameters: list[Tensor], use: Use) -> None:
    """Standard normal noise from torch's global generator, one parameter after the other."""
    torch.manual_seed(seed)
    for parameter in parameters:
        use(parameter, torch.normal(0.0, 1.0, parameter.shape, device=parameter.device, dtype=parameter.dtype))


@dataclass(frozen=True)
class EagerResult:
    """Mean of the two losses, and their difference over 2 eps."""

    loss: float
    scalar: float
    forwards: int = 2


class EagerMeZO:
    """One symmetric pair a step, weights moved in place by three passes, then updated by a fourth.

    Args:
        draw: another source of directions (for tests).

    Raises:
        ValueError (from `step`): a loss is not finite; the weights stay moved, as in an eager implementation.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        lr: float,
        eps: float,
        seed: int,
        draw: Draw = normal_noise,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.lr, self.eps, self.seed = lr, eps, seed
        self.draw = draw
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.step_number = 0

    def step(self, batch: Any) -> EagerResult:
        seed = step_seed(self.seed, self.step_number)
        with torch.no_grad():
            self._add(seed, self.eps)
            plus = float(self.loss_fn(self.model, batch))
            self._add(seed, -2 * self.eps)
            minus = float(self.loss_fn(self.model, batch))
            self._add(seed, self.eps)
            if not (math.isfinite(plus) and math.isfinite(minus)):
                raise ValueError(f"the losses are {plus} and {minus}; expected finite numbers: lower lr or eps")
            scalar = (plus - minus) / (2 * self.eps)
            self._add(seed, -self.lr * scalar)
        self.step_number += 1
        return EagerResult((plus + minus) / 2, scalar)

    def _add(self, seed: int, scale: float) -> None:
        self.draw(seed, self.parameters, lambda parameter, z: parameter.data.add_(z, alpha=scale))
