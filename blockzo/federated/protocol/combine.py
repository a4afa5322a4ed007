"""How the scalars of several clients become one: in float64, in a way that does not depend on their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockzo.federated.protocol.examples import most_of, padded
from blockzo.federated.protocol.settings import RunSettings


@dataclass(frozen=True)
class Contribution:
    """Scalars of one client and the rows that they come from; `counts` as of a reply."""

    scalars: tuple[float, ...]
    examples: int
    loss: float
    slot: int = 0
    counts: tuple[int, ...] = ()


def counts_of(contributions: Sequence[Contribution], settings: RunSettings) -> list[int]:
    """What each client weighs: its examples, or 1."""
    return [c.examples if settings.weighting == "examples" else 1 for c in contributions]


def weights_of(contributions: Sequence[Contribution], settings: RunSettings) -> list[float]:
    """Share of each client in a mean; they sum to 1."""
    counts = counts_of(contributions, settings)
    return [count / sum(counts) for count in counts]


def combine(contributions: Sequence[Contribution], settings: RunSettings) -> list[float]:
    """One scalar for each entry: what the clients of a round with shared directions say together. Where every example has
    directions of its own, there are entries for as many as the client with most of them has, and others' count as zeros.
    """
    vectors = [c.scalars for c in contributions]
    if settings.counted:
        most = most_of([c.counts for c in contributions])
        vectors = [tuple(padded(settings, c.scalars, c.counts, most)) for c in contributions]
    return settings.combining.combine(vectors, counts_of(contributions, settings))
