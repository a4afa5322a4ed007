"""Exact draws of the discrete Gaussian, from the operating system's generator alone.

P(x) is proportional to exp(-x^2 / (2 variance)) over the integers. Canonne, Kamath and Steinke, "The Discrete Gaussian for
Differential Privacy" (NeurIPS 2020, arXiv 2004.00010), algorithms 1 to 3. All arithmetic is on integers, so that nothing is
lost to rounding: a floating-point Gaussian has holes in its low bits that give the value under it away (Mironov, CCS 2012). The
time of a draw depends on what is drawn; whoever can time single draws is not defended against.
"""

from __future__ import annotations

import math
import secrets
from fractions import Fraction


def bernoulli(numerator: int, denominator: int) -> bool:
    """True with probability numerator / denominator."""
    return secrets.randbelow(denominator) < numerator


def _bernoulli_exp(numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator / denominator) (algorithm 1)."""
    while numerator > denominator:
        if not _bernoulli_exp(1, 1):
            return False
        numerator -= denominator
    count = 1
    while bernoulli(numerator, denominator * count):
        count += 1
    return count % 2 == 1


def _laplace(scale: int) -> int:
    """P(x) proportional to exp(-|x| / scale) (algorithm 2)."""
    while True:
        rest = secrets.randbelow(scale)
        if not _bernoulli_exp(rest, scale):
            continue
        whole = 0
        while _bernoulli_exp(1, 1):
            whole += 1
        size, negative = rest + scale * whole, bernoulli(1, 2)
        # zero must not count twice
        if not (negative and size == 0):
            return -size if negative else size


def discrete_gaussian(variance: Fraction) -> int:
    """One draw around 0 (algorithm 3).

    Args:
        variance: sigma^2, positive; that of the drawn integers is at most this.
    """
    if variance <= 0:
        raise ValueError(f"variance is {variance}; expected a positive fraction")
    top, bottom = variance.numerator, variance.denominator
    scale = math.isqrt(top // bottom) + 1
    while True:
        found = _laplace(scale)
        # exp(-(|x| - variance / scale)^2 / (2 variance)), over one denominator
        distance = abs(found) * bottom * scale - top
        if _bernoulli_exp(distance * distance, 2 * top * bottom * scale * scale):
            return found
