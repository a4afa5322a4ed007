"""What a client adds to a secure sum, and what the sum says: mean scalars and loss, and the examples of all."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from blockzo.federated.privacy.noise_shares import mean_of_sum, noisy_integers
from blockzo.federated.protocol.combine import Contribution
from blockzo.federated.protocol.estimate import Estimate
from blockzo.federated.protocol.settings import RunSettings
from blockzo.federated.secagg.fixed_point import FixedPoint
from blockzo.federated.sums import MOST_CLIENTS, SumError

log = logging.getLogger("blockzo.federated")

FIXED = FixedPoint(bits=20, terms=MOST_CLIENTS)
"""Of every run: all participants must agree on it."""


def length_of(settings: RunSettings) -> int:
    """Integers in a sum: of n, n x loss, n x every scalar."""
    return 2 + settings.scalars


def encoded(found: Estimate, settings: RunSettings) -> list[int]:
    """n, n x loss, n x every scalar, as integers; n is the number of examples, 1 with equal weighting.

    With privacy 1, 0, and the clipped scalars on the grid, each with a share of the noise.

    Raises:
        ValueError: a value is not finite or too large. The text does not tell it, since it goes to the server.
    """
    private = settings.private
    if private is not None:
        # the loss would be a release of its own
        return [FIXED.encode(1.0), 0, *noisy_integers(private, found.scalars)]
    times = found.examples if settings.weighting == "examples" else 1
    if len(found.scalars) != settings.scalars or times < 1:
        raise ValueError(
            f"{len(found.scalars)} scalars from {times} examples; expected {settings.scalars} and 1 or more examples"
        )
    try:
        return [FIXED.encode(1.0, times), *(FIXED.encode(value, times) for value in (found.loss, *found.scalars))]
    except ValueError as error:
        log.error("nothing to add to the sum: %s", error)
        raise ValueError(
            "the loss or a scalar is not finite, or too large for the sum; the client's log says which"
        ) from None


def decoded(total: Sequence[int], settings: RunSettings, clients: int) -> Contribution:
    """The weighted means that the sum of so many clients stands for, as one contribution; with equal weighting a client counts
    as one example.

    Raises:
        SumError: the number of examples cannot be; somebody sent nonsense.
    """
    weight, loss, *scalars = total
    if weight < 1 or weight % (1 << FIXED.bits):
        raise SumError(f"the sum claims {FIXED.decode(weight)} examples; expected a positive whole number")
    examples = weight >> FIXED.bits
    if settings.weighting == "equal" and examples != clients:
        raise SumError(f"the sum of {clients} clients claims {examples}; expected each to count as one")
    private = settings.private
    if private is not None:
        return Contribution(mean_of_sum(private, scalars, clients), examples, 0.0)
    return Contribution(tuple(value / weight for value in scalars), examples, loss / weight)
