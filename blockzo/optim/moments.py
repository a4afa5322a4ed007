"""Moments of past steps, made again from their seeds and scalars: nothing of a weight's size is stored.

`past`: of each step before this one its seed, and by group its directions and scalars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from blockzo.methods import Scalars
from blockzo.noise import Noise
from blockzo.optim.closures import Terms

TINY = 1e-8
"""Added to the root of a second moment, as in Adam."""
Moment = list[float]
"""Moving mean of squares from 0, and of 1: the one over the other has no bias."""


def velocity(kind: Noise, past: Sequence[Any], number: int, momentum: float, rate: float) -> Terms:
    """The terms of the past steps in the update of group `number`, the last of them first."""
    factors = accumulate([momentum] * len(past), lambda a, b: a * b)
    terms: Terms = []
    for factor, (seed, slopes) in zip(factors, reversed(past), strict=True):
        if number < len(slopes):
            noise = replace(kind, seed=seed)
            terms += [(noise, d, factor * rate * s) for d, s in zip(*slopes[number], strict=True)]
    return terms


def mean_factor(past: Sequence[Any], number: int, momentum: float) -> float:
    """What makes a mean of a velocity: one over the sum of its factors, this step's 1 among them."""
    held = sum(number < len(slopes) for _, slopes in past)
    return 1.0 / math.fsum(momentum**k for k in range(held + 1))


def second_moments(before: Sequence[Moment], scalars: Scalars, beta: float) -> list[Moment]:
    """Of each group's gradient, the sum of s z over its directions.

    Its square has the mean of s * s over the directions, the same for every weight: exactly s * s for one direction of signs. So
    it is one number a group. A group that rests keeps its own.
    """
    moments = []
    for number, block in enumerate(scalars):
        square, weight = before[number] if number < len(before) else (0.0, 0.0)
        if block:
            square = beta * square + (1.0 - beta) * math.fsum(s * s for s in block.values())
            weight = beta * weight + (1.0 - beta)
        moments.append([square, weight])
    return moments


def root(moment: Moment) -> float:
    square, weight = moment
    return math.sqrt(square / weight) + TINY if weight else 1.0
