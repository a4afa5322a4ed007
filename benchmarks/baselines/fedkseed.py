"""FedKSeed (Qin et al., arXiv 2312.06353) in plain torch: K seeds for the whole training, so that its result is K numbers.

At a local step a client draws one of the K seeds, takes the slope along it and adds it to that seed's sum. Whoever joins builds
the model from the base: K directions drawn and added, however many steps were taken.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

from benchmarks.baselines.noise import InPlace


class FedKSeedClient(InPlace):
    """What one participant does; the model, its loss and the source of noise are those of `InPlace`."""

    def local(
        self, seeds: Sequence[int], batches: Sequence[Any], lr: float, eps: float, chance: random.Random
    ) -> list[tuple[int, float]]:
        """Number of a seed and slope, one pair a local step; the weights follow."""
        sent = []
        for batch in batches:
            number = chance.randrange(len(seeds))
            slope = self.slope(batch, seeds[number], eps)[1]
            self.add(seeds[number], -lr * slope)
            sent.append((number, slope))
        return sent

    def build(self, seeds: Sequence[int], sums: Sequence[float], lr: float) -> None:
        """The base becomes the model of these sums; seeds without a step are left out."""
        for seed, total in zip(seeds, sums, strict=True):
            if total:
                self.add(seed, -lr * total)


def accumulated(sums: Sequence[float], sent: Sequence[tuple[int, float]], share: float = 1.0) -> list[float]:
    """The server's K sums after a client's pairs, weighted by its share."""
    result = list(sums)
    for number, slope in sent:
        result[number] += share * slope
    return result


def message(sent: Sequence[tuple[int, float]]) -> bytes:
    """What a client sends: 2 bytes for the number of a seed and 4 for a slope, a local step."""
    return b"".join(struct.pack("<Hf", number, slope) for number, slope in sent)
