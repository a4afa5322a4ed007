"""Central privacy without a trusted server: every client adds a share of the noise to its integers before it masks them.

The sum of discrete Gaussians is close to a discrete Gaussian, and how close is known: Kairouz, Liu and Steinke, "The Distributed
Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation" (ICML 2021, arXiv 2102.06387, proposition 14). Shares
are sized for the least number of clients that a sum may have (`PrivacySettings.survivors`); with more there is more noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from blockzo.federated.privacy.accounting import MOST_SCALARS
from blockzo.federated.privacy.discrete_gaussian import discrete_gaussian
from blockzo.federated.privacy.settings import PrivacySettings
from blockzo.federated.sums import MOST_CLIENTS, SumError

_FEWEST_STEPS = Fraction(1, 2)
"""Standard deviation of a share on the grid, at least: the theorem's condition."""


def check_shares(private: PrivacySettings, scalars: int) -> None:
    """Refuses settings for which the theorem does not hold.

    Raises:
        ValueError: with the reason.
    """
    if private.mode != "central" or private.sampling_rate < 1:
        raise ValueError(
            f"secure_sum with privacy mode {private.mode!r}, sampling_rate {private.sampling_rate}: noise in shares is that of "
            'mode "central", and a sum needs its clients, so that they cannot be drawn in secret: expected "central" and 1'
        )
    if not 2 <= private.survivors <= MOST_CLIENTS:
        raise ValueError(
            f"secure_sum with privacy survivors {private.survivors}: every client adds its share of the noise, sized for the "
            f"least number of clients in a sum: expected 2 to {MOST_CLIENTS}, and not more than the quorum"
        )
    if scalars > MOST_SCALARS:
        raise ValueError(f"{scalars} scalars in a round with noise in shares; expected {MOST_SCALARS} at most")
    if private.share_variance < _FEWEST_STEPS**2:
        raise ValueError(
            f"noise_multiplier is {private.noise_multiplier} in {private.survivors} shares on a grid of {private.levels} steps: "
            "a share's deviation is below half a step; take more noise, fewer survivors or a smaller batch"
        )


def noisy_integers(private: PrivacySettings, scalars: Sequence[float]) -> list[int]:
    """What a client adds to the sum: its clipped scalars (of `PrivacySettings.mean_of`) on the grid, and noise on each."""
    variance = private.share_variance
    return [value + discrete_gaussian(variance) for value in private.integers(scalars)]


def mean_of_sum(private: PrivacySettings, sums: Sequence[int], clients: int) -> tuple[float, ...]:
    """The record's scalars from the sum of so many clients.

    Raises:
        SumError: an integer is larger than clipped scalars and noise can make it; somebody sent nonsense.
    """
    deviation = math.sqrt(private.share_variance * clients)
    most = clients * private.levels * private.batch + 64 * deviation + 64
    if any(abs(value) > most for value in sums):
        raise SumError(
            f"an integer of the sum is larger than {most:g}, the most that clipped scalars and noise can make"
        )
    return private.scaled(sums)
