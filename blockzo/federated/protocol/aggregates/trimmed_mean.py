"""The mean of every entry without its largest and smallest values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.federated.protocol.aggregates.base import Aggregate, Vectors


@dataclass(frozen=True)
class TrimmedMean(Aggregate):
    """Of every scalar the mean without the share `trim` of the values at either end (Yin et al. 2018).

    The share is rounded up, as long as one value is left.
    """

    trim: float = 0.25

    name: ClassVar[str] = "trimmed-mean"
    summary: ClassVar[str] = "a mean without the largest and smallest values"
    fields_of_run: ClassVar[Mapping[str, str]] = {"trim": "trim"}

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim is {self.trim}; expected a share of 0 or more and below 0.5")

    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        cut = min(math.ceil(self.trim * len(vectors)), (len(vectors) - 1) // 2)
        return [middle(entry, cut) for entry in zip(*vectors, strict=True)]


def middle(values: Sequence[float], cut: int) -> float:
    """The mean of the values without the `cut` largest and smallest."""
    kept = sorted(values)[cut : len(values) - cut]
    return math.fsum(kept) / len(kept)
