"""n-SPSA (Spall 1992, averaged over n directions), in plain torch: MeZO's passes n times, then n updates."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.baselines.noise import Draw, InPlace, Loss, normal_noise
from blockzo.optim.step import step_seed


class EagerSPSA(InPlace):
    """w <- w - lr / n sum_i s_i z_i, s_i = (l(w + eps z_i) - l(w - eps z_i)) / (2 eps)."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        lr: float,
        eps: float,
        seed: int,
        directions: int = 4,
        draw: Draw = normal_noise,
    ) -> None:
        super().__init__(model, loss_fn, draw)
        self.lr, self.eps, self.seed, self.directions = lr, eps, seed, directions
        self.step_number = 0

    def step(self, batch: Any) -> list[float]:
        """The n slopes."""
        seed = step_seed(self.seed, self.step_number)
        seeds = [step_seed(seed, i) for i in range(self.directions)]
        slopes = [self.slope(batch, own, self.eps)[1] for own in seeds]
        for own, slope in zip(seeds, slopes, strict=True):
            self.add(own, -self.lr / self.directions * slope)
        self.step_number += 1
        return slopes
