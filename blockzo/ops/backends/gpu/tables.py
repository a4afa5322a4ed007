"""What GPU kernels are told, as small tables on the device, kept for as long as the same steps and tensors come: all layers
of one forward share one table. Each stream has its own, since the copy of one is ordered on that stream alone.

Experimental: never run on a GPU.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from torch.cuda import is_current_stream_capturing

from blockzo.ops.packed import Given, PackedStep, upload
from blockzo.ops.steps import Step

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
EXACT: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""Of every launch: multiplications and additions are rounded one by one."""


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


MOST_PROGRAMS = 2**31 - 1


def programs(*counts: int) -> tuple[int]:
    """The grid of a launch: one axis, since the others of a GPU end at 65,535.

    Raises:
        ValueError: more programs than a GPU numbers.
    """
    count = prod(counts)
    if count > MOST_PROGRAMS:
        raise ValueError(
            f"{' x '.join(map(str, counts))} programs are more than a GPU starts in one launch; expected at most "
            f"{MOST_PROGRAMS}: evaluate fewer rows at a time"
        )
    return (count,)


Queue = tuple[torch.device, int]
"""A device and a stream of it."""
_holders: list[list[Tensor]] = []
_of_graphs: dict[int, Tensor] = {}


def queue_of(device: torch.device) -> Queue:
    """The device with its current stream."""
    return device, int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


@contextmanager
def held_tables() -> Iterator[list[Tensor]]:
    """Tables that launches inside read: who captures them in a graph must keep them, as a cache may drop them."""
    kept: list[Tensor] = []
    _holders.append(kept)
    try:
        yield kept
    finally:
        _holders.pop()


def used(*tables: Tensor) -> None:
    """A table may be dropped from its cache while this stream still reads it, or a graph that a user captures."""
    if _holders:
        _holders[-1].extend(tables)
        return
    for table in tables:
        if is_captured(table):
            # how long that graph lives is not known here; tables are small
            _of_graphs[id(table)] = table
        elif table.is_cuda:
            table.record_stream(torch.cuda.current_stream(table.device))


def is_captured(table: Tensor) -> bool:
    """Whether what reads the table now becomes part of a CUDA graph."""
    return table.is_cuda and is_current_stream_capturing()


def bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def signed(value: int) -> int:
    """The int32 with the bits of a uint32."""
    return value - (1 << 32) if value >> 31 else value


def words(seed: int) -> tuple[int, int]:
    return signed(seed & 0xFFFFFFFF), signed(seed >> 32)


@lru_cache(maxsize=128)
def table(rows: tuple[tuple[int, ...], ...], queue: Queue) -> Tensor:
    """By integers: as floats, coefficients of 0 and -0 would be one key."""
    # a kernel must be given an address even where it reads nothing
    return upload(torch.tensor(rows or ((0, 0),), dtype=torch.int32), queue[0])


def tables_of(step: Given, queue: Queue) -> tuple[Tensor, Tensor]:
    """Those of one step: all layers of a forward are given the same."""
    if isinstance(step, PackedStep):
        return step.line, step.terms
    found = step.tables.get(queue)
    if found is None:
        found = step.tables[queue] = _tables([step], queue)
    held: tuple[Tensor, Tensor] = found
    return held


def step_tables(steps: Sequence[Given], queue: Queue) -> tuple[Tensor, Tensor]:
    """int32 [steps, 6] and [terms, 2] of `kernels/moves.py`; a step that is packed brings its own and comes alone."""
    if len(steps) == 1:
        return tables_of(steps[0], queue)
    return _tables(steps, queue)


def _tables(steps: Sequence[Given], queue: Queue) -> tuple[Tensor, Tensor]:
    lines: list[tuple[int, ...]] = []
    terms: list[tuple[int, ...]] = []
    for step in steps:
        assert isinstance(step, Step)
        first = len(terms)
        terms += [(signed(d), bits(c)) for d, c in zip(step.directions, step.coefficients, strict=True)]
        lines.append((*words(step.seed), first, len(terms), bits(step.factor), step.stochastic | step.joins << 1))
    return table(tuple(lines), queue), table(tuple(terms), queue)


@lru_cache(maxsize=64)
def tensor_tables(tensors: tuple[tuple[int, int, int], ...], block: int, queue: Queue) -> tuple[Tensor, Tensor]:
    """int64 [tensors, 3] of (address, elements, stream), and int32 [programs, 2] of (tensor, number of its chunk)."""
    chunks = chunk_table(np.array([count for _, count, _ in tensors]), block)
    return upload(torch.tensor(tensors, dtype=torch.int64), queue[0]), upload(torch.from_numpy(chunks), queue[0])


def chunk_table(counts: np.ndarray, block: int) -> np.ndarray:
    """int32 [programs, 2] of (tensor, number of its chunk) for tensors of so many elements."""
    programs = -(-counts // block)
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), programs)
    first = np.repeat(np.cumsum(programs) - programs, programs)
    return np.stack([owner, (np.arange(len(owner)) - first).astype(np.int32)], axis=1)
