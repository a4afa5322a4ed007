"""How the scalars of several clients become one: in float64, in a way that does not depend on their order."""

from __future__ import annotations

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


def counts_of(contributions: Sequence[Contribution], settings: RunSettings) -> list[int]:
    """What each client weighs: its examples, or 1."""
    return [c.examples if settings.weighting == "examples" else 1 for c in contributions]


def weights_of(contributions: Sequence[Contribution], settings: RunSettings) -> list[float]:
    """Share of each client in a mean; they sum to 1."""
    counts = counts_of(contributions, settings)
    return [count / sum(counts) for count in counts]


def combine(contributions: Sequence[Contribution], settings: RunSettings) -> list[float]:
    """One scalar for each entry: what the clients of a round with shared directions say together."""
    return settings.combining.combine([c.scalars for c in contributions], counts_of(contributions, settings))
