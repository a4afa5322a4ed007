"""A part of a tensor, and where its elements lie in the whole: the index of the whole addresses the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Element (i, j, ...) has the row-major index `start + i * strides[0] + j * strides[1] + ...` in the whole tensor.

    `shape`: of the whole; None where it is not known.
    """

    start: int
    strides: tuple[int, ...]
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Shard:
    """A part of a tensor, for the operations that take `params`: it gets the bits that it has when the whole is moved.

    Args:
        tensor: the part, of any shape and memory layout.
        offset: row-major index of its first element in the whole tensor.
        strides: one a dimension of `tensor`: how far apart neighbours are in the row-major order of the whole tensor.
            Columns 64 to 127 of a [1000, 256] weight: `Shard(part, 64, (256, 1))`.
        shape: of the whole tensor. Needed for noise of a low rank, which depends on it; `Shard.at` knows it.

    Raises:
        ValueError: `tensor` is not a plain tensor, an index is negative or 2**63 or more, two elements have one index.
    """

    tensor: Tensor
    offset: int
    strides: tuple[int, ...]
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.tensor) not in (Tensor, torch.nn.Parameter):
            raise ValueError(
                f"the tensor of a shard is a {type(self.tensor).__name__}; expected a plain torch.Tensor "
                "(pass a DTensor itself, it knows its place)"
            )
        strides = tuple(int(stride) for stride in self.strides)
        object.__setattr__(self, "strides", strides)
        object.__setattr__(self, "offset", int(self.offset))
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        shape = tuple(self.tensor.shape)
        if len(strides) != len(shape):
            raise ValueError(f"a shard of shape {shape} has strides {strides}; expected one a dimension")
        last = self.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if self.offset < 0 or min(strides, default=0) < 0 or (self.tensor.numel() and last >= 1 << 63):
            raise ValueError(
                f"a shard of shape {shape} has offset {self.offset} and strides {strides}; "
                "expected indices from 0 to 2**63 - 1 that rise along every dimension"
            )
        if self.shape is not None and self.tensor.numel() and last >= prod(self.shape):
            raise ValueError(
                f"a shard of shape {shape} has offset {self.offset} and strides {strides}, whose last index {last} is outside a "
                f"whole of shape {self.shape}"
            )
        reach = 0
        for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1):
            if stride <= reach and self.tensor.numel():
                raise ValueError(
                    f"a shard of shape {shape} has strides {strides}, which give two elements one index; "
                    "expected the strides of a slice of the whole tensor, as of a contiguous tensor of its shape"
                )
            reach += (size - 1) * stride

    @staticmethod
    def at(tensor: Tensor, shape: Sequence[int], offsets: Sequence[int]) -> Shard:
        """The block of a tensor of `shape` that begins at `offsets`, one a dimension, and is as large as `tensor`."""
        sizes = tuple(tensor.shape)
        fits = len(sizes) == len(shape) == len(offsets)
        if not fits or any(o < 0 or o + n > s for n, s, o in zip(sizes, shape, offsets, strict=True)):
            raise ValueError(
                f"a shard of shape {sizes} at {tuple(offsets)} does not lie in a tensor of shape {tuple(shape)}; "
                "expected offset + size <= shape in every dimension"
            )
        strides = row_major(shape)
        return Shard(tensor, sum(o * s for o, s in zip(offsets, strides, strict=True)), strides, tuple(shape))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[d + 1 :]) for d in range(len(shape)))


def place_of(
    shape: Sequence[int], offset: int, strides: Sequence[int], whole: Sequence[int] | None = None
) -> Place | None:
    """None where the part is the whole, or is numbered as one whose shape is not known, or is empty."""
    if whole is not None and prod(shape) > 0 and tuple(shape) != tuple(whole):
        return Place(offset, tuple(strides), tuple(whole))
    same = all(n == 1 or a == b for n, a, b in zip(shape, strides, row_major(shape), strict=True))
    if not prod(shape) or (offset == 0 and same):
        return None
    return Place(offset, tuple(strides), None if whole is None else tuple(whole))


def in_order(tensor: Tensor, place: Place) -> tuple[Tensor, Place]:
    """The same elements, dimensions in falling order of their strides in the whole; those of size 1 are left out."""
    order = sorted((d for d in range(tensor.dim()) if tensor.shape[d] > 1), key=lambda d: -place.strides[d])
    view = torch.as_strided(
        tensor.detach(), [tensor.shape[d] for d in order], [tensor.stride(d) for d in order], tensor.storage_offset()
    )
    return view, Place(place.start, tuple(place.strides[d] for d in order), place.shape)


def indices(shape: Sequence[int], place: Place, first: int, count: int, device: torch.device) -> Tensor:
    """int64: where `count` elements from number `first` of the row-major order of the part lie in the whole."""
    rest = torch.arange(first, first + count, dtype=torch.int64, device=device)
    index = torch.full_like(rest, place.start)
    for size, stride in zip(reversed(shape), reversed(place.strides), strict=True):
        index += rest % size * stride
        rest = torch.div(rest, size, rounding_mode="floor")
    return index
