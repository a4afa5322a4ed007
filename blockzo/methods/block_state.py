"""What the planner knows of one block: energy of its gradient, curvature, what a second batch confirms."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


LEAST_SHARE = 0.03
"""Of the energy, that is taken to be confirmed at least, and where nothing is known. Half of the best rate still gives three
quarters of its decrease, twice the best none."""


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
    asked: Mean = field(init=False)
    probes: int = 0
    since: int = 0
    paid: float = 0.0
    usual: float = 0.0
    usual_gain: float = 1.0
    usual_share: float = LEAST_SHARE

    def __post_init__(self) -> None:
        self.energy, self.own = Mean(self.memory), Mean(self.memory)
        # of curvature: itself, its square, its product with the energy of the same direction, and that energy
        self.plain, self.squared, self.along, self.weight = (Mean(2 * self.memory) for _ in range(4))
        self.confirmed, self.tried, self.asked = (Mean(SHARE_MEMORY) for _ in range(3))

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
        """S, curvature along the gradient, which averaging over directions does not lower. What examples do not share lies where
        the loss is curved (for a log-likelihood the mean of g g^T is H): tr H^2 / tr H. What batches share may lie where it is
        curved most: sqrt(tr H^2). The variance along directions is 2 tr H^2.
        """
        mean = self.plain.value
        squares = max(0.0, self.squared.value - mean * mean) / 2
        common = self.confidence
        found = common * math.sqrt(squares) + (1 - common) * squares / self.curvature
        return min(self.curvature, (PRIOR * self.curvature / SHARPNESS + self.probes * found) / (PRIOR + self.probes))

    def confirm(self, first: Sequence[float], second: Sequence[float]) -> None:
        """Takes slopes along the same directions on two batches, in units of the energy then."""
        now, count = max(self.energy.value, 1e-30), len(first)
        weight = FEW * worth(count)
        self.confirmed.add(math.fsum(s * t for s, t in zip(first, second, strict=True)) / count / now, weight)
        self.tried.add(math.fsum(s * s + t * t for s, t in zip(first, second, strict=True)) / (2 * count) / now, weight)
        self.asked.add(now)
        self.probes, self.since, self.paid = self.probes + 1, 0, 0.0

    @property
    def looks(self) -> tuple[float, float]:
        """What a second batch confirmed, and of how much. Looks at far more energy than there is now count little: what is gone
        since was what batches had in common.
        """
        fresh = min(1.0, self.energy.value / self.asked.value) ** 2 if self.asked.value > 0 else 0.0
        weight = fresh * self.confirmed.weight
        return self.confirmed.value * weight, self.tried.value * weight

    @property
    def confidence(self) -> float:
        """Share of the energy that another batch confirms, drawn to what all blocks have in common: it hangs on how much examples
        differ more than on the block, and a few hundredths are beyond what the probes of one block can tell.
        """
        product, energy = self.looks
        return min(1.0, max(LEAST_SHARE, (SHARE_PRIOR * self.usual_share + product) / (SHARE_PRIOR + energy)))

    def rate(self, directions: float, factor: float = 1.0, batches: int = 1) -> float:
        """`caution` times the best rate, less after few probes: scalars and curvature have heavy tails, which few probes do not
        show. A fraction f of the best rate still gives f (2 - f) of the best decrease. `factor` multiplies it up to that fraction
        and not beyond: the best rate is an estimate, and past it steps soon lose more than they win.

        Args:
            directions: that all examples share; of those of their own, as many as have the same noise.
            batches: that the scalars are means over; the more, the larger is the confirmed share of what is left.
        """
        fraction = self.caution * min(1.0, factor * self.probes / (self.probes + LAG))
        confirmed = self.confidence * batches / (1 + (batches - 1) * self.confidence)
        return fraction * confirmed * directions / (self.curvature + (directions - 1) * self.sharpness)

    def decrease(self, directions: float) -> float:
        return self.confidence * self.energy.value * self.rate(directions) / 2


def worth(directions: int) -> float:
    """Of a mean over so many directions of one batch, beside one over all: batches differ, too."""
    return directions / (directions + FEW)


def share(looks: Sequence[tuple[float, float]]) -> float:
    """What all blocks have in common, less its standard error."""
    confirmed, tried = math.fsum(c for c, _ in looks), math.fsum(t for _, t in looks)
    if tried <= 0:
        return LEAST_SHARE
    return min(1.0, max(LEAST_SHARE, confirmed / tried - 1 / math.sqrt(tried)))


PRIOR = 4.0
"""Probes that a first guess counts for."""
SHARE_PRIOR, SHARE_MEMORY = 24.0, 300.0
"""In directions: what the share common to all blocks counts for, and how far back looks go."""
FEW = 16
"""Directions along which the error of a mean is due to them and to the batch in equal parts."""
SHARPNESS = 16.0
"""T over S where nothing is known."""
LAG = 3.0
"""Probes after which half of the rate is taken."""
GAIN_PRIOR, MOST_GAIN = 2.0, 64.0
"""Steps along directions of examples' own that a first guess counts for, and how far from 1 their gain is believed."""
PROBE = 2
"""Directions of a probe at least."""
WASTE = 0.1
"""Part of what steps win that may be lost by looking at the block in use again."""
LEAST_PROBES, MOST_PROBES, AGAIN = 2, 6, 16
"""A block is not moved by fewer probes than the first number, nor by fewer than the second where they disagree on the curvature;
the block in use is looked at again after AGAIN steps."""
