"""FZOO (Dang et al., arXiv 2506.09034) in plain torch, one forward after the other: sign vectors, and a step whose size is the
rate over the deviation of the losses. The paper runs the forwards as a batch by hand, for models that it rewrites.
"""

from __future__ import annotations

from statistics import stdev
from typing import Any

from benchmarks.baselines.noise import Directions, sign_noise


class EagerFZOO(Directions):
    """w <- w - lr / (n eps sigma) sum_i (l_i - l_0) u_i, l_i at w + eps u_i, sigma the deviation of l_1 .. l_n."""

    draw = staticmethod(sign_noise)

    def step(self, batch: Any) -> list[float]:
        """The n losses."""
        seeds, base, losses = self.next_seeds(), self.loss(batch), []
        for own in seeds:
            self.add(own, self.eps)
            losses.append(self.loss(batch))
            self.add(own, -self.eps)
        size = self.lr / (self.directions * self.eps * stdev(losses))
        for own, loss in zip(seeds, losses, strict=True):
            self.add(own, -size * (loss - base))
        return losses
