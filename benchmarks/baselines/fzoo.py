"""FZOO (Dang et al., arXiv 2506.09034) in plain torch, one forward after the other: sign vectors, and a step whose size is the
rate over the deviation of the losses. The paper runs the forwards as a batch by hand, for models that it rewrites.
"""

from __future__ import annotations

from statistics import stdev
from typing import Any

from torch import nn

from benchmarks.baselines.noise import Draw, InPlace, Loss, sign_noise
from blockzo.optim.step import step_seed


class EagerFZOO(InPlace):
    """w <- w - lr / (n eps sigma) sum_i (l_i - l_0) u_i, l_i at w + eps u_i, sigma the deviation of l_1 .. l_n."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        lr: float,
        eps: float,
        seed: int,
        directions: int = 8,
        draw: Draw = sign_noise,
    ) -> None:
        super().__init__(model, loss_fn, draw)
        self.lr, self.eps, self.seed, self.directions = lr, eps, seed, directions
        self.step_number = 0

    def step(self, batch: Any) -> list[float]:
        """The n losses."""
        seed = step_seed(self.seed, self.step_number)
        seeds = [step_seed(seed, i) for i in range(self.directions)]
        base, losses = self.loss(batch), []
        for own in seeds:
            self.add(own, self.eps)
            losses.append(self.loss(batch))
            self.add(own, -self.eps)
        size = self.lr / (self.directions * self.eps * stdev(losses))
        for own, loss in zip(seeds, losses, strict=True):
            self.add(own, -size * (loss - base))
        self.step_number += 1
        return losses
