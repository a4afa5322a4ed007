"""The mean, weighted by examples or equally, as in federated averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.federated.protocol.aggregates.base import Aggregate, Vectors


@dataclass(frozen=True)
class Mean(Aggregate):
    """The mean, by examples or equally (McMahan et al. 2017); one liar moves it as far as the server's limits let it."""

    name: ClassVar[str] = "mean"
    summary: ClassVar[str] = "the mean"
    weighted: ClassVar[bool] = True
    own_directions: ClassVar[bool] = True
    secure_sum: ClassVar[bool] = True
    central_noise: ClassVar[bool] = True

    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        return [total / sum(counts) for total in weighted_sums(vectors, counts)]


def weighted_sums(vectors: Vectors, counts: Sequence[int]) -> list[float]:
    """Of every entry, exact but for one rounding."""
    return [math.fsum(n * v for n, v in zip(counts, entry, strict=True)) for entry in zip(*vectors, strict=True)]
