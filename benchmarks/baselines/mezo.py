"""MeZO as its paper states it (Malladi et al., arXiv 2305.17333, Algorithm 1), in plain torch: the baseline for wall time.

Written from the description: the generator is seeded, and each parameter's noise is drawn again by `torch.normal` in the same
order wherever it is needed: weights + eps z, a forward, - 2 eps z, a forward, + eps z, then the update with the same z. The
noise is therefore made four times a step, and weights are written four times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.baselines.noise import Directions


@dataclass(frozen=True)
class EagerResult:
    """Mean of the two losses, and their difference over 2 eps."""

    loss: float
    scalar: float
    forwards: int = 2


class EagerMeZO(Directions):
    """One symmetric pair a step, weights moved in place by three passes, then updated by a fourth."""

    def step(self, batch: Any) -> EagerResult:
        seed = self.next_seed()
        loss, scalar = self.slope(batch, seed, self.eps)
        self.add(seed, -self.lr * scalar)
        return EagerResult(loss, scalar)
