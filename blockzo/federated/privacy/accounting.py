"""Epsilon of Gaussian noise over rounds, as small as dp-accounting can show it (docs/privacy.md, "Epsilon", has the argument).

The noise is a discrete Gaussian. Up to a factor of 1 + 1e-13 on every probability of a whole run it is a continuous one of a
variance smaller by `_ROUNDING`, rounded at random; so what holds for that continuous Gaussian holds for it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from blockzo.federated.sums import MOST_CLIENTS

MOST_SCALARS = 1 << 20
"""Of a round with noise in shares; the bound grows with their number."""
_ORDERS = (*range(2, 257), 320, 384, 512, 768, 1024, 2048, 4096)
"""Of Renyi divergences; whole numbers, for which the bound of a sampled discrete Gaussian is shown (docs/privacy.md)."""
_ROUNDING = 4
"""Variance, in squared steps of the grid, of the random rounding that makes a discrete Gaussian of a continuous one."""
_MARGIN = 1e-9
"""On epsilon, for the factor above and for the root finder."""
_LEAST_NOISE, _MOST_ROUNDS, _MOST_EPSILON = 0.3, 100_000, 256.0
"""Where a privacy loss distribution of sampled rounds is a matter of a second: beyond, its range is too wide."""
_FFT_ERROR = 1e-14
"""Of a round, in delta: a hundred times the largest error seen against 80-bit floats (docs/privacy.md)."""


def need_accounting() -> None:
    """Raises ImportError, with what to do, where dp-accounting is not installed: before a run, not after its first round."""
    if find_spec("dp_accounting") is None:
        raise ImportError("a run with privacy needs dp-accounting to say what it costs: pip install 'blockzo[privacy]'")


def continuous(noise_multiplier: float, variance: Fraction, shares: int) -> float | None:
    """Noise multiplier of a continuous Gaussian that tells as much as the noise on the grid, or more.

    Args:
        noise_multiplier: of the noise on the grid.
        variance: of that noise, in squared steps.
        shares: of which it is the sum, each a discrete Gaussian; 1 where it is drawn at once.

    Returns:
        None on a grid that is too coarse: a share's variance is below twice that of the rounding.

    Source: Peikert, "An Efficient and Parallel Gaussian Sampler for Lattices" (CRYPTO 2010), theorem 3.1.
    """
    if variance < 2 * _ROUNDING * shares:
        return None
    return noise_multiplier * math.sqrt(1 - _ROUNDING / variance)


def by_renyi(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    """From Renyi divergences, which a discrete Gaussian has no more of than a continuous one, on every grid."""
    from dp_accounting import rdp

    orders, divergences = one_round(noise_multiplier, rate)
    return float(rdp.compute_epsilon(orders, rounds * divergences, delta)[0])


def exact(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Of rounds without sampling: together they are one Gaussian mechanism, whose epsilon is known (Balle and Wang 2018)."""
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(noise_multiplier / math.sqrt(rounds), delta)) * (1 + _MARGIN) + _MARGIN


def by_loss_distribution(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    """Of Poisson-sampled rounds, from the distribution of the privacy loss; every rounding upwards.

    Infinite where it would be slow, or where the error of the Fourier transform counts beside `delta`.
    """
    error = rounds * _FFT_ERROR
    if noise_multiplier < _LEAST_NOISE or rounds > _MOST_ROUNDS or error > delta / 10:
        return math.inf
    composed = _losses(noise_multiplier, rate).self_compose(rounds)
    return float(composed.get_epsilon_for_delta(delta - error)) * (1 + _MARGIN) + _MARGIN


@lru_cache(maxsize=64)
def one_round(noise_multiplier: float, rate: float) -> tuple[Any, Any]:
    """Orders, and the Renyi divergence of one round at each of them."""
    import dp_accounting
    from dp_accounting import rdp

    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    # without sampling the bound holds for every order, and fractions are tighter where epsilon is large
    orders = _ORDERS if rate < 1 else (*(1 + k / 50 for k in range(1, 500)), *_ORDERS)
    accountant = rdp.RdpAccountant(orders=list(orders))
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, event) if rate < 1 else event)
    return accountant.orders, accountant.rdp


@lru_cache(maxsize=4)
def _losses(noise_multiplier: float, rate: float) -> Any:
    """Distribution of the privacy loss of one sampled round, rounded upwards on a grid.

    The grid is a twentieth of the loss's deviation, but no finer than 2^14 points over its range and no coarser than 1/250.
    """
    from dp_accounting.pld import privacy_loss_distribution

    precision = 1 / noise_multiplier
    deviation = rate * math.sqrt(math.expm1(precision**2))
    largest = math.log1p(rate * math.exp(10 * precision + precision**2 / 2))
    step = min(max(deviation / 20, largest / 2**14, 1e-7), 4e-3)
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=rate, value_discretization_interval=step, pessimistic_estimate=True
    )


def shares_distance(variance: float, clients: int) -> float:
    """How far the sum of so many discrete Gaussians, each of this variance, is from one.

    Source: Kairouz, Liu and Steinke (ICML 2021, arXiv 2102.06387), proposition 14, tau.
    """
    return 10 * math.fsum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, clients))


def of_shares(noise_multiplier: float, share_variance: Fraction, scalars: int = MOST_SCALARS) -> float:
    """Noise multiplier of a Gaussian mechanism that costs as much as one round with noise in shares, or more.

    The Renyi divergence of order a is at most a/2 (D / (sqrt(n) sigma) + tau sqrt(d))^2, where D is the L2 norm that one unit
    adds (`levels`), sigma a share's deviation, n the clients and d the scalars: the Gaussian's at one over the bracket.
    tau grows with n, so it is taken at the most clients that a sum can have, and the first term at the fewest.

    Args:
        noise_multiplier: of the sum of the fewest clients.
        share_variance: in squared steps of the grid.
    """
    tau = shares_distance(float(share_variance), MOST_CLIENTS)
    return 1 / (1 / noise_multiplier + tau * math.sqrt(scalars))


def epsilon(on_grid: float | None, renyi: float, rate: float, rounds: int, delta: float) -> float:
    """The smallest epsilon that one of the three shows.

    Args:
        on_grid: noise multiplier by `continuous`; None leaves Renyi divergences alone.
        renyi: noise multiplier for `by_renyi`.
        rate: of Poisson sampling; 1 without.
        rounds: 1 or more.
        delta: of (epsilon, delta).
    """
    if on_grid is None:
        return by_renyi(renyi, rate, rounds, delta)
    if rate == 1:
        return exact(on_grid, rounds, delta)
    found = by_renyi(renyi, rate, rounds, delta)
    return min(found, by_loss_distribution(on_grid, rate, rounds, delta)) if found <= _MOST_EPSILON else found
