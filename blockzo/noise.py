"""Noise contract v1: the address of a number, and the torch reference that makes it.

The contract is `docs/noise.md`. Everything here runs on any torch device with plain eager operations, each of which
rounds on its own, so the bits equal those of the compiled kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from blockzo.contract import (
    COLUMN_FACTORS,
    CONTRACT,
    DISTRIBUTIONS,
    ROUNDING_DIRECTION,
    ROW_FACTORS,
    canonical_name,
    check_direction,
    check_rank,
    check_seed,
    check_stream,
    is_low_rank,
    stream_id,
)

__all__ = [
    "CONTRACT",
    "DISTRIBUTIONS",
    "ROUNDING_DIRECTION",
    "Noise",
    "canonical_name",
    "check_direction",
    "check_rank",
    "check_seed",
    "check_stream",
    "noise_at",
    "noise_range",
    "philox",
    "rounding_bits",
    "stream_id",
]

_MASK32 = 0xFFFFFFFF
_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
_LOG_ORIGIN = 0x3F3504F3
_LOG_SCALE = 0x3FB17218
_ANGLE_SCALE = 0x38490FDB
_Q = (0xC000001B, 0x3F800149, 0xBF2A8369, 0x3EFEC92F, 0xBED2FBB6, 0x3EC18C5D, 0xBE7242CD)
_C = (0x3F7FFFFF, 0xBEFFFFE0, 0x3D2AA76F, 0xBAB59551, 0x37C23AB1)
_S = (0x3F7FFFF3, 0xBE2AA816, 0x3C083456, 0xB9423DF1)


def _float(bits: int) -> float:
    return float(torch.tensor([bits - (1 << 32) if bits >> 31 else bits], dtype=torch.int32).view(torch.float32).item())


def philox(block: Tensor, seed: int, stream: int, direction: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., SC'11): four int64 tensors holding uint32 words, one set for each entry of `block`.

    `block` is int64 and holds the 64-bit block number.
    """
    key0, key1 = seed & _MASK32, seed >> 32
    x0, x1 = block & _MASK32, (block >> 32) & _MASK32
    x2, x3 = torch.full_like(block, stream), torch.full_like(block, direction)
    for _ in range(10):
        # int64 products wrap, which leaves the 64 bits right; the mask makes the shift a logical one
        p0, p1 = x0 * _PHILOX_M0, x2 * _PHILOX_M1
        hi0, lo0 = (p0 >> 32) & _MASK32, p0 & _MASK32
        hi1, lo1 = (p1 >> 32) & _MASK32, p1 & _MASK32
        x0, x1, x2, x3 = hi1 ^ x1 ^ key0, lo1, hi0 ^ x3 ^ key1, lo0
        key0, key1 = (key0 + _PHILOX_W0) & _MASK32, (key1 + _PHILOX_W1) & _MASK32
    return x0, x1, x2, x3


def _polynomial(x: Tensor, bits: Sequence[int]) -> Tensor:
    value = torch.full_like(x, _float(bits[-1]))
    for coefficient in reversed(bits[:-1]):
        value = value * x
        value = value + _float(coefficient)
    return value


def _pair(word: Tensor) -> tuple[Tensor, Tensor]:
    """The Box-Muller pair of one 32-bit word, each operation rounded on its own."""
    y = (2 * (word & 0xFFFF) + 1).to(torch.float32)
    bits = y.view(torch.int32)
    exponent = (bits - _LOG_ORIGIN) >> 23
    t = (bits - (exponent << 23)).view(torch.float32) - 1.0
    log_term = t * _polynomial(t, _Q)
    # torch's float32 sqrt goes through a vector library that is not always correctly rounded; by way of float64 it is
    radius = torch.sqrt(((17 - exponent).to(torch.float32) * _float(_LOG_SCALE) + log_term).double()).float()
    angle = (2 * ((word >> 16) & 0x7FFF) - 32767).to(torch.float32) * _float(_ANGLE_SCALE)
    square = angle * angle
    cosine = _polynomial(square, _C)
    sine = angle * _polynomial(square, _S)
    even, odd = radius * cosine, radius * sine
    flip = (word >> 31).to(torch.bool)
    return torch.where(flip, -even, even), torch.where(flip, -odd, odd)


def noise_at(index: Tensor, seed: int, distribution: str, stream: int, direction: int) -> Tensor:
    """float32 noise at any int64 indices (row-major in the whole logical tensor); the definition, kept plain."""
    if distribution == "rademacher":
        words = torch.stack(philox(index >> 7, seed, stream, direction))
        word = words.gather(0, ((index >> 5) & 3).unsqueeze(0)).squeeze(0)
        return (1 - 2 * ((word >> (index & 31)) & 1)).to(torch.float32)
    even, odd = _pair(gaussian_word(index, seed, stream, direction))
    return torch.where((index & 1).to(torch.bool), odd, even)


def gaussian_word(index: Tensor, seed: int, stream: int, direction: int) -> Tensor:
    words = torch.stack(philox(index >> 3, seed, stream, direction))
    return words.gather(0, ((index >> 1) & 3).unsqueeze(0)).squeeze(0)


def noise_range(
    start: int,
    count: int,
    seed: int,
    distribution: str,
    stream: int,
    direction: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """float32 noise of `count` consecutive indices from `start`: whole Philox blocks are made once and expanded."""
    width = 128 if distribution == "rademacher" else 8
    first, last = start // width, (start + count + width - 1) // width
    block = torch.arange(first, max(last, first), dtype=torch.int64, device=device)
    words = torch.stack(philox(block, seed, stream, direction), dim=1)  # [blocks, 4]
    if distribution == "rademacher":
        shifts = torch.arange(32, dtype=torch.int64, device=device)
        values = (1 - 2 * ((words.unsqueeze(-1) >> shifts) & 1)).to(torch.float32)
    else:
        values = torch.stack(_pair(words), dim=-1)
    offset = start - first * width
    return values.reshape(-1)[offset : offset + count]


def factors(
    first: int,
    count: int,
    side: int,
    rank: int,
    seed: int,
    distribution: str,
    stream: int,
    direction: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """float32 [count, rank]: low-rank noise's factors of `count` rows (side ROW_FACTORS) or columns (COLUMN_FACTORS) from
    number `first` on."""
    start = side + first * rank
    return noise_range(start, count * rank, seed, distribution, stream, direction, device).view(count, rank)


def low_rank_scale(rank: int) -> float:
    """float32(1 / sqrt(rank)), computed in float64 and rounded once."""
    return float(torch.tensor(1.0 / math.sqrt(rank), dtype=torch.float64).to(torch.float32).item())


def low_rank_product(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """sum over q of a[rows, q] * b[columns, q], in the order of q, then the scale; each operation rounded on its own.

    `rows` and `columns` are indices that broadcast to the shape of the result.
    """
    total = a[:, 0][rows] * b[:, 0][columns]
    for q in range(1, a.shape[1]):
        total = total + a[:, q][rows] * b[:, q][columns]
    return total * low_rank_scale(a.shape[1])


def low_rank_at(
    index: Tensor, width: int, rank: int, seed: int, distribution: str, stream: int, direction: int
) -> Tensor:
    """float32 noise of rank `rank` at any int64 indices of a matrix of `width` columns."""
    if not index.numel():
        return torch.empty(index.shape, dtype=torch.float32, device=index.device)
    rows, columns = torch.div(index, width, rounding_mode="floor"), index % width
    held = []
    for side, place in ((ROW_FACTORS, rows), (COLUMN_FACTORS, columns)):
        first, last = int(place.min()), int(place.max())
        where = side, rank, seed, distribution, stream, direction, index.device
        held.append((factors(first, last - first + 1, *where), place - first))
    (a, i), (b, j) = held
    return low_rank_product(a, b, i, j)


def rounding_bits(start: int, count: int, seed: int, stream: int, device: torch.device | str = "cpu") -> Tensor:
    """16 random bits an element (int64) for stochastic rounding: direction 0xFFFFFFFF, low half for even indices."""
    index = torch.arange(start, start + count, dtype=torch.int64, device=device)
    word = gaussian_word(index, seed, stream, ROUNDING_DIRECTION)
    return torch.where((index & 1).to(torch.bool), word >> 16, word & 0xFFFF)


@dataclass(frozen=True)
class Noise:
    """The noise of one optimisation step: `z[i] = noise(seed, stream, direction, i)`, a pure function.

    Args:
        seed: integer in [0, 2**64), one per step.
        distribution: "rademacher" (+1 or -1) or "gaussian" (Box-Muller, variance 1).
        rank: 1 to 64: matrices with both sides larger have noise A B^T / sqrt(rank), whose factors are of the distribution;
            all other tensors, and all where None, have noise of full rank.

    Raises:
        ValueError: the seed, the distribution or the rank is not one of these.
    """

    seed: int
    distribution: str = "rademacher"
    rank: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_rank(self.rank)
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {self.distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}")

    def sample(
        self,
        stream: str | int,
        shape: int | Sequence[int],
        direction: int = 0,
        start: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Noise as a tensor, for tests and analysis; training never stores it.

        Args:
            stream: parameter name, or its uint32 stream.
            shape: shape of the result, filled row-major from index `start` of the logical tensor.
            direction: which perturbation of the step, in [0, 2**32 - 1).
            start: index of the first value, in [0, 2**63); 0 where the noise of this shape has a low rank.

        Returns:
            Tensor of `shape`; values are made in float32 and rounded once to `dtype`.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = prod(shape)
        check_direction(direction)
        if not 0 <= start or start + count >= 1 << 63:
            raise ValueError(f"start is {start} for {count} values; indices must lie in [0, 2**63)")
        if is_low_rank(shape, self.rank):
            if start:
                raise ValueError(
                    f"start is {start}; expected 0 for noise of rank {self.rank}, whose shape is that of the whole matrix: "
                    "slice the factors (`factors`) for a part of one"
                )
            a, b = self.factors(stream, shape, direction, device)
            rows, columns = (torch.arange(size, device=device) for size in shape)
            return low_rank_product(a, b, rows.unsqueeze(1), columns).to(dtype)
        values = noise_range(start, count, self.seed, self.distribution, check_stream(stream), direction, device)
        return values.to(dtype).reshape(shape)

    def factors(
        self, stream: str | int, shape: Sequence[int], direction: int = 0, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """The factors of low-rank noise: float32 A [rows, rank] and B [columns, rank], of which the noise is A B^T / sqrt(rank).

        Raises:
            ValueError: the noise of a tensor of this shape has full rank.
        """
        check_direction(direction)
        if self.rank is None or not is_low_rank(shape, self.rank):
            raise ValueError(
                f"noise of rank {self.rank} of a tensor of shape {tuple(shape)} has no factors; expected a rank, and a "
                "matrix with both sides larger"
            )
        rows, columns = shape
        where = self.rank, self.seed, self.distribution, check_stream(stream), direction, device
        return factors(0, rows, ROW_FACTORS, *where), factors(0, columns, COLUMN_FACTORS, *where)
