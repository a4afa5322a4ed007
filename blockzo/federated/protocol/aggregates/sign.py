"""The weighted majority of signs, one bit each way (signSGD with majority vote)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.federated.protocol.aggregates.base import Aggregate, Vectors
from blockzo.federated.protocol.aggregates.mean import weighted_sums


@dataclass(frozen=True)
class Sign(Aggregate):
    """The weighted majority of signs, one bit a scalar each way; a tie is +1 (Bernstein et al. 2019)."""

    name: ClassVar[str] = "sign"
    summary: ClassVar[str] = "the majority's sign, one bit each way"
    weighted: ClassVar[bool] = True
    signs: ClassVar[bool] = True

    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        return [-1.0 if total < 0 else 1.0 for total in weighted_sums(vectors, counts)]
