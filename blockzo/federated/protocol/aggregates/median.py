"""The median of every entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.federated.protocol.aggregates.base import Aggregate, Vectors
from blockzo.federated.protocol.aggregates.trimmed_mean import middle


@dataclass(frozen=True)
class Median(Aggregate):
    """Of every scalar the median; of an even number of clients the mean of the two in the middle (Yin et al. 2018)."""

    name: ClassVar[str] = "median"
    summary: ClassVar[str] = "the median of every scalar"

    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        return [middle(entry, (len(entry) - 1) // 2) for entry in zip(*vectors, strict=True)]
