"""MeZO as its paper states it (Malladi et al., arXiv 2305.17333, Algorithm 1), in plain torch: the baseline for wall time.

Written from the description: the generator is seeded, and each parameter's noise is drawn again by `torch.normal` in the same
order wherever it is needed: weights + eps z, a forward, - 2 eps z, a forward, + eps z, then the update with the same z. The
noise is therefore made four times a step, and weights are written four times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.baselines.noise import Draw, InPlace, Loss, normal_noise
from blockzo.optim.step import step_seed


@dataclass(frozen=True)
class EagerResult:
    """Mean of the two losses, and their difference over 2 eps."""

    loss: float
    scalar: float
    forwards: int = 2


class EagerMeZO(InPlace):
    """One symmetric pair a step, weights moved in place by three passes, then updated by a fourth.

    Args:
        draw: another source of directions (for tests).
    """

    def __init__(
        self, model: nn.Module, loss_fn: Loss, lr: float, eps: float, seed: int, draw: Draw = normal_noise
    ) -> None:
        super().__init__(model, loss_fn, draw)
        self.lr, self.eps, self.seed = lr, eps, seed
        self.step_number = 0

    def step(self, batch: Any) -> EagerResult:
        seed = step_seed(self.seed, self.step_number)
        loss, scalar = self.slope(batch, seed, self.eps)
        self.add(seed, -self.lr * scalar)
        self.step_number += 1
        return EagerResult(loss, scalar)
