"""DeComFL (Li et al., arXiv 2405.15861) in plain torch: rounds in which seeds and scalars alone travel.

A client walks K local steps, step k along P shared directions by forward differences, and walks back. The server averages the
scalars. Whoever lacks rounds replays them: every direction is drawn again and added, one pass over the weights for each.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from benchmarks.baselines.noise import InPlace
from blockzo.optim.step import step_seed

Scalars = list[list[float]]
"""[K steps][P directions]."""


class DeComFLClient(InPlace):
    """What one participant does; the model, its loss and the source of noise are those of `InPlace`."""

    def local(self, seeds: Sequence[int], batches: Sequence[Any], directions: int, lr: float, mu: float) -> Scalars:
        """The scalars of its local steps; the weights are afterwards as before, but for rounding."""
        sent: Scalars = []
        for seed, batch in zip(seeds, batches, strict=True):
            here, step = self.loss(batch), []
            for p in range(directions):
                own = step_seed(seed, p)
                self.add(own, mu)
                step.append((self.loss(batch) - here) / mu)
                self.add(own, -mu)
            sent.append(step)
            self.replay([seed], [step], lr)
        self.replay(seeds, sent, -lr)
        return sent

    def replay(self, seeds: Sequence[int], scalars: Scalars, lr: float) -> None:
        """w <- w - lr / P sum_p s_kp z_kp for every step k: a round, or all that were missed."""
        for seed, step in zip(seeds, scalars, strict=True):
            for p, scalar in enumerate(step):
                self.add(step_seed(seed, p), -lr / len(step) * scalar)


def averaged(clients: Sequence[Scalars]) -> Scalars:
    """What the server sends back."""
    return [[sum(column) / len(clients) for column in zip(*step, strict=True)] for step in zip(*clients, strict=True)]


def message(scalars: Scalars) -> bytes:
    """What a client sends: 4 bytes a scalar."""
    flat = [scalar for step in scalars for scalar in step]
    return struct.pack(f"<{len(flat)}f", *flat)
