"""The geometric median: the point whose distances to all clients' vectors have the least sum.

For federated learning: Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning" (IEEE TSP 2022, arXiv
1912.13445). Found by Weiszfeld's steps as Vardi and Zhang mended them (PNAS 2000): the plain ones stick to a client's own vector.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.federated.protocol.aggregates.base import Aggregate, Vectors
from blockzo.federated.protocol.aggregates.median import Median

_HERE = 1e-12
"""A vector is at a point that is nearer than this share of the median distance at the beginning."""
_CLOSE = 1e-9
"""A move of this share is the last."""


@dataclass(frozen=True)
class GeometricMedian(Aggregate):
    """The scalars with the least sum of distances to those of all clients, in `steps` steps at most (Pillutla et al. 2022)."""

    steps: int = 100

    name: ClassVar[str] = "geometric-median"
    summary: ClassVar[str] = "the least sum of distances to all clients"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 10_000:
            raise ValueError(f"steps is {self.steps}; expected 1 to 10000")

    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        # liars far away move neither this point nor the scale
        found = Median().combine(vectors, counts)
        scale = statistics.median(math.dist(found, vector) for vector in vectors)
        if not scale:
            # half of the clients or more are here, and no other point is nearer to all
            return found
        for _ in range(self.steps):
            before, found = found, _nearer(vectors, found, scale)
            if math.dist(before, found) <= _CLOSE * scale:
                break
        return found


def _nearer(vectors: Vectors, point: Sequence[float], scale: float) -> list[float]:
    """One step. Every sum is exact but for one rounding, so that the order of clients does not matter."""
    far = [(scale / away, vector) for vector in vectors if (away := math.dist(point, vector)) > _HERE * scale]
    here = len(vectors) - len(far)
    total = math.fsum(weight for weight, _ in far)
    pulled = [math.fsum(weight * vector[k] for weight, vector in far) / total for k in range(len(point))]
    # how hard those elsewhere pull, against those that stand here
    pull = total * math.dist(pulled, point) / scale
    kept = 1.0 if here >= pull else here / pull
    return [kept * old + (1 - kept) * new for old, new in zip(point, pulled, strict=True)]
