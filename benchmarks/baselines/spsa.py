"""n-SPSA (Spall 1992, averaged over n directions), in plain torch: MeZO's passes n times, then n updates."""

from __future__ import annotations

from typing import Any

from benchmarks.baselines.noise import Directions


class EagerSPSA(Directions):
    """w <- w - lr / n sum_i s_i z_i, s_i = (l(w + eps z_i) - l(w - eps z_i)) / (2 eps)."""

    def step(self, batch: Any) -> list[float]:
        """The n slopes."""
        seeds = self.next_seeds()
        slopes = [self.slope(batch, own, self.eps)[1] for own in seeds]
        for own, slope in zip(seeds, slopes, strict=True):
            self.add(own, -self.lr / self.directions * slope)
        return slopes
