"""Krum and Multi-Krum: whole clients are kept or left out, by how close others are to them.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries" (NeurIPS 2017).

An entry-wise median can be made of entries of different clients; Krum's answer is what some client sent, and a liar has to sit
among the honest to be it. The work grows with the square of the number of clients, times that of scalars, in plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.federated.protocol.aggregates.base import Aggregate, Vectors


@dataclass(frozen=True)
class Krum(Aggregate):
    """The scalars of the client closest to the others, or the mean of the `keep` best (Multi-Krum), where a share `byzantine` may
    lie (Blanchard et al. 2017).

    A client's score is the sum of its squared distances to the n - f - 2 clients closest to it, of n clients of which f may lie.
    The least is the best; all that tie with the last one kept are kept too. f is `byzantine` times n, rounded up, and the largest
    number with 2 f + 2 < n at most, as the paper's theorem asks.
    """

    byzantine: float = 0.25
    keep: int = 1

    name: ClassVar[str] = "krum"
    summary: ClassVar[str] = "the client closest to the others"

    def __post_init__(self) -> None:
        if not 0 <= self.byzantine < 0.5 or not 1 <= self.keep <= 1 << 16:
            raise ValueError(
                f"byzantine is {self.byzantine}, keep {self.keep}; expected a share of 0 or more and below 0.5, and 1 client "
                "or more"
            )

    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        scores = self.scores(vectors)
        last = sorted(scores)[min(self.keep, len(scores)) - 1]
        kept = [vector for vector, score in zip(vectors, scores, strict=True) if score <= last]
        return [math.fsum(entry) / len(kept) for entry in zip(*kept, strict=True)]

    def scores(self, vectors: Vectors) -> list[float]:
        """Of every client; the least is the best."""
        clients = len(vectors)
        lying = min(math.ceil(self.byzantine * clients), max(0, (clients - 3) // 2))
        closest = max(1, clients - lying - 2)
        apart = [[0.0] * clients for _ in vectors]
        for i, one in enumerate(vectors):
            for j in range(i):
                apart[i][j] = apart[j][i] = math.fsum((a - b) ** 2 for a, b in zip(one, vectors[j], strict=True))
        # without the distance to itself, also where others are at the same place
        return [math.fsum(sorted(row[:i] + row[i + 1 :])[:closest]) for i, row in enumerate(apart)]
