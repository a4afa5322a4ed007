"""Halves the planner's rates when the loss rises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from blockzo.methods.block_state import Mean

STRETCHES: tuple[tuple[float, float], ...] = ((0.25, 4.0), (1.0, 3.0), (4.0, 3.0))
"""Length of a stretch, relative to the guard's, and the standard errors that chance may explain."""


@dataclass
class Guard:
    """Halves all rates when the loss of a stretch of steps lies above the best such stretch by more than chance explains, and
    takes that back by and by as the loss falls again. Short stretches see a collapse at once, long ones a slow drift.

    Curvature is measured seldom and where the weights were; on real models rates that were right become too high.
    """

    length: int
    factor: float = 1.0
    best: list[float | None] = field(default_factory=lambda: [None] * len(STRETCHES))
    losses: list[list[float]] = field(default_factory=lambda: [[] for _ in STRETCHES])
    spread: Mean = field(default_factory=lambda: Mean(8.0))

    def add(self, loss: float) -> None:
        for stretch, (share, errors) in enumerate(STRETCHES):
            length, seen = max(2, round(share * self.length)), self.losses[stretch]
            seen.append(loss)
            if len(seen) < length:
                continue
            mean, best = math.fsum(seen) / length, self.best[stretch]
            if stretch == 0:
                self.spread.add(math.fsum((x - mean) ** 2 for x in seen) / (length - 1))
            seen.clear()
            if best is None or mean < best:
                self.best[stretch] = mean
                if share == 1:
                    self.factor = min(1.0, 1.5 * self.factor)
            elif mean - best > errors * math.sqrt(2 * self.spread.value / length):
                # the next halving needs another rise, or the best of many stretches would be taken for a fall
                self.best[stretch] = mean
                self.factor /= 2
