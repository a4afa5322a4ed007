"""Which rows form the batch of step t: a pure function of (seed, t) and the lengths, so that a resumed run sees the same batches.

The order comes from the noise contract's Philox words, not from a library's generator whose stream may change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockzo.noise import philox, stream_id

POOL = 16
"""Batches whose rows are sorted by length together; longer pools pad less but mix less."""


def shuffled(count: int, seed: int, purpose: str, epoch: int = 0) -> list[int]:
    """A permutation of 0 .. count-1 that depends on nothing but the arguments."""
    high, low, _, _ = philox(torch.arange(count, dtype=torch.int64), seed, stream_id(f"blockzo {purpose}"), epoch)
    keys = ((high >> 1) << 32) | low
    return torch.argsort(keys, stable=True).tolist()


class BatchOrder:
    """Rows of every step's batch; rows of one batch have similar lengths.

    Args:
        lengths: tokens of every row.
        batch: rows a batch; fewer where there are not as many rows.
        pool: batches sorted by length together; 1 leaves rows as they are drawn.

    An epoch visits every row at most once and leaves out the rest of the division by `batch`; another rest every epoch.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, pool: int = POOL) -> None:
        self.lengths = list(lengths)
        self.batch = min(batch, len(self.lengths))
        self.seed = seed
        self.pool = max(1, pool)
        self.per_epoch = len(self.lengths) // self.batch
        self._epoch: tuple[int, list[list[int]]] | None = None

    def rows(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self._epoch[1][place]

    def width(self, rows: Sequence[int]) -> int:
        """Tokens of the longest of some rows."""
        return max(self.lengths[row] for row in rows)

    def _batches(self, epoch: int) -> list[list[int]]:
        order = shuffled(len(self.lengths), self.seed, "rows", epoch)[: self.per_epoch * self.batch]
        size = self.pool * self.batch
        batches: list[list[int]] = []
        for start in range(0, len(order), size):
            pool = order[start : start + size]
            if self.pool > 1:
                pool = sorted(pool, key=lambda row: self.lengths[row])
            batches += [pool[i : i + self.batch] for i in range(0, len(pool), self.batch)]
        return [batches[i] for i in shuffled(len(batches), self.seed, "batches", epoch)]


def by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """All rows in batches of similar length, for evaluation."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return [order[i : i + batch] for i in range(0, len(order), batch)]
