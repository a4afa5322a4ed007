"""What the planner knows of one block: energy of its gradient, curvature, what a second batch confirms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Mean:
    """A running mean: plain for the first observations, then exponential."""

    memory: float
    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.weight = min(self.weight + weight, max(self.memory, weight))
        self.value += (value - self.value) * weight / self.weight


@dataclass
class BlockState:
    """What is known of one block; the means go back `memory` probes."""

    memory: float
    caution: float
    energy: Mean = field(init=False)
    squared: Mean = field(init=False)
    own: Mean = field(init=False)
    plain: Mean = field(init=False)
    along: Mean = field(init=False)
    weight: Mean = field(init=False)
    confirmed: Mean = field(init=False)
    tried: Mean = field(init=False)
    probes: int = 0
    since: int = 0
    usual: float = 0.0
    usual_gain: float = 1.0

    def __post_init__(self) -> None:
        self.energy, self.own = Mean(self.memory), Mean(self.memory)
        # of curvature: itself, its square, its product with the energy of the same direction, and that energy
        self.plain, self.squared, self.along, self.weight = (Mean(2 * self.memory) for _ in range(4))
        self.confirmed, self.tried = Mean(2 * self.memory), Mean(2 * self.memory)

    def examples(self, energy: float, weight: float) -> None:
        """Takes sum_b w_b^2 s_b^2 of slopes s_b of examples, each along a direction of its own. How it changes from step to step
        is how the energy changes, which these steps do not see.
        """
        if self.own.weight:
            self.energy.add(energy * self.energy.value / max(self.own.value, 1e-30), weight)
        self.own.add(energy)

    @property
    def measured_gain(self) -> float:
        """|sum_b w_b g_b|^2 / sum_b w_b^2 |g_b|^2: how many times less noise a direction an example has than a shared one."""
        return min(MOST_GAIN, max(1 / MOST_GAIN, self.energy.value / max(self.own.value, 1e-30)))

    @property
    def gain(self) -> float:
        """The same; while few steps told it, drawn (its logarithm) to what blocks have in common, 1 where nothing is known."""
        if not self.own.weight:
            return self.usual_gain
        told = self.own.weight
        return math.exp(
            (GAIN_PRIOR * math.log(self.usual_gain) + told * math.log(self.measured_gain)) / (GAIN_PRIOR + told)
        )

    @property
    def curvature(self) -> float:
        """T; while there are few probes, drawn (its logarithm) to the ratio to the energy that all blocks have in common: the
        block of the lowest T is chosen, which after one probe is the one whose T was found too low by most.
        """
        found = self.measured_curvature
        if self.usual <= 0:
            return found
        prior = math.log(self.usual * max(self.energy.value, 1e-30))
        drawn = math.exp((PRIOR * prior + self.probes * math.log(found)) / (PRIOR + self.probes))
        return max(drawn, self.energy.value, 1e-30)

    @property
    def measured_curvature(self) -> float:
        """E[s^2 c] / E[s^2] with one standard error on top, for it changes sign from direction to direction. Never below the
        energy: near a fit of a log-likelihood the trace of the Hessian is the mean energy of one example's gradient.
        """
        mean = self.along.value / self.weight.value if self.weight.value > 0 else 0.0
        return max(max(mean, 0.0) + self.error, self.energy.value, 1e-30)

    @property
    def error(self) -> float:
        """Standard error of the mean curvature."""
        spread = max(0.0, self.squared.value - self.plain.value**2)
        return math.sqrt(spread / max(1.0, self.squared.weight))

    @property
    def known(self) -> bool:
        """Whether the curvature is known well enough to move by it: the best of many blocks is easily the worst known."""
        enough = self.probes >= MOST_PROBES or (
            self.probes >= LEAST_PROBES and 4 * self.error <= self.measured_curvature
        )
        return enough and self.since < AGAIN

    @property
    def sharpness(self) -> float:
        """S, curvature along the gradient, which averaging over directions does not lower: sqrt(tr H^2) at most, where the
        variance of the curvature along a direction is 2 tr H^2.
        """
        mean = self.plain.value
        found = math.sqrt(max(0.0, self.squared.value - mean * mean) / 2)
        drawn = (PRIOR * self.curvature / 4 + self.probes * found) / (PRIOR + self.probes)
        return min(self.curvature, drawn)

    @property
    def confidence(self) -> float:
        """Share of the energy that another batch confirms, drawn to 1/2 while there are few probes."""
        found = self.confirmed.value / self.tried.value if self.tried.value > 0 else 0.0
        weight = self.confirmed.weight
        return min(1.0, max(0.05, (PRIOR / 2 + found * weight) / (PRIOR + weight)))

    def rate(self, directions: float, factor: float = 1.0) -> float:
        """`caution` times the best rate, less after few probes: scalars and curvature have heavy tails, which few probes do not
        show. A fraction f of the best rate still gives f (2 - f) of the best decrease. `factor` multiplies it up to that fraction
        and not beyond: the best rate is an estimate, and past it steps soon lose more than they win.

        Args:
            directions: that all examples share; of those of their own, as many as have the same noise.
        """
        fraction = self.caution * min(1.0, factor * self.probes / (self.probes + LAG))
        return fraction * self.confidence * directions / (self.curvature + (directions - 1) * self.sharpness)

    def decrease(self, directions: float) -> float:
        return self.confidence * self.energy.value * self.rate(directions) / 2


PRIOR = 4.0
"""Probes that a first guess counts for."""
LAG = 3.0
"""Probes after which half of the rate is taken."""
GAIN_PRIOR, MOST_GAIN = 2.0, 64.0
"""Steps along directions of examples' own that a first guess counts for, and how far from 1 their gain is believed."""
PROBE = 2
"""Directions of a probe at least."""
UNSEEN = 0.5
"""Share of the cost that goes to probes while a block was never visited."""
LEAST_PROBES, MOST_PROBES, AGAIN = 2, 6, 16
"""A block is not moved by fewer probes than the first number, nor by fewer than the second where they disagree on the curvature;
the block in use is looked at again after AGAIN steps."""
