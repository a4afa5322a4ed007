"""Parts of tensors as GPU kernels see them: runs of consecutive indices, each contiguous in memory.

Experimental: never run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from blockzo.ops.backends.gpu.tables import Queue, chunk_table
from blockzo.ops.packed import upload
from blockzo.ops.params import Target
from blockzo.ops.shards import in_order

GROUP = 128
"""Elements of one Philox block of Rademacher noise: kernels make noise from multiples of it."""

Layout = tuple[int, int, int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Address, bytes of an element, stream, index of the first element, elements of a run; then of the dimensions outside the runs:
sizes, strides in memory, strides in the whole tensor.
"""


@dataclass(frozen=True)
class Runs:
    """One part: `memory` holds it; where that is a copy, `target` gets the result back."""

    target: Tensor
    memory: Tensor
    layout: Layout

    @staticmethod
    def of(target: Target) -> Runs:
        assert target.place is not None
        view, place = in_order(target.tensor, target.place)
        outer, width = view.dim(), 1
        while outer and place.strides[outer - 1] == width:
            outer -= 1
            width *= view.shape[outer]
        inner = [prod(view.shape[d + 1 :]) for d in range(outer, view.dim())]
        memory = view if list(view.stride()[outer:]) == inner else view.contiguous()
        shape = tuple(view.shape[:outer]), tuple(memory.stride()[:outer]), place.strides[:outer]
        address = memory.data_ptr(), memory.element_size()
        return Runs(view, memory, (*address, target.stream, place.start, width, *shape))

    @property
    def width(self) -> int:
        return self.layout[4]

    @property
    def aligned(self) -> bool:
        """Whether, in every run, index 0 modulo 128 lies where 16 bytes begin."""
        address, item, _, start, _, _, strides, apart = self.layout
        # by the first run and by what lies between two of them
        first = (address - start % GROUP * item) % 16 == 0
        return first and all(
            (stride - step % GROUP) * item % 16 == 0 for stride, step in zip(strides, apart, strict=True)
        )

    def put_back(self) -> None:
        if self.memory is not self.target:
            with torch.no_grad():
                self.target.copy_(self.memory)


@lru_cache(maxsize=64)
def run_tables(layouts: tuple[Layout, ...], block: int, queue: Queue) -> tuple[Tensor, Tensor]:
    """int64 [runs, 4] of `kernels/moves.py`, and its int32 [programs, 2] of (run, number of its chunk)."""
    tables = []
    for address, item, stream, start, width, sizes, strides, apart in layouts:
        memory, index = np.array([address]), np.array([start])
        for size, stride, step in zip(sizes, strides, apart, strict=True):
            place = np.arange(size, dtype=np.int64)
            memory = (memory[:, None] + place * (stride * item)).reshape(-1)
            index = (index[:, None] + place * step).reshape(-1)
        lead = index % GROUP
        tables.append(np.stack([memory - lead * item, lead + width, np.full_like(index, stream), index], axis=1))
    runs = np.concatenate(tables)
    device = queue[0]
    return upload(torch.from_numpy(runs), device), upload(torch.from_numpy(chunk_table(runs[:, 1], block)), device)
