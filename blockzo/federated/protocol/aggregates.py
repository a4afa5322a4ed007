"""How the scalars of several clients become one: entry by entry, in float64, in a way that does not depend on their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blockzo.federated.protocol.settings import RunSettings


@dataclass(frozen=True)
class Contribution:
    """Scalars of one client and the rows that they come from."""

    scalars: tuple[float, ...]
    examples: int
    loss: float
    slot: int = 0


def weights_of(contributions: Sequence[Contribution], settings: RunSettings) -> list[float]:
    """Share of each client in a mean; they sum to 1."""
    counts = [c.examples if settings.weighting == "examples" else 1 for c in contributions]
    return [count / sum(counts) for count in counts]


def combine(contributions: Sequence[Contribution], settings: RunSettings) -> list[float]:
    """One scalar for each entry: what the clients of a round with shared directions say together.

    The mean weighs by examples (or equally). A trimmed mean leaves out the `trim` largest and smallest shares of every entry,
    rounded up, as long as one value is left (Yin et al. 2018); that and the median weigh equally: a claimed number of
    examples must not outvote honest clients. Sign: +1 or -1 by weighted majority, a tie is +1 (Bernstein et al. 2019).
    """
    columns = list(zip(*(c.scalars for c in contributions), strict=True))
    if settings.aggregate == "median":
        return [_middle(sorted(column), (len(column) - 1) // 2) for column in columns]
    if settings.aggregate == "trimmed-mean":
        cut = min(math.ceil(settings.trim * len(contributions)), (len(contributions) - 1) // 2)
        return [_middle(sorted(column), cut) for column in columns]
    counts = [c.examples if settings.weighting == "examples" else 1 for c in contributions]
    sums = [math.fsum(n * value for n, value in zip(counts, column, strict=True)) for column in columns]
    if settings.aggregate == "sign":
        return [-1.0 if total < 0 else 1.0 for total in sums]
    return [total / sum(counts) for total in sums]


def _middle(values: list[float], cut: int) -> float:
    kept = values[cut : len(values) - cut]
    return math.fsum(kept) / len(kept)
