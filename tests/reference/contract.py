"""The noise contract once more, in NumPy, written from docs/noise.md alone: what the torch reference is compared with.

One element at a time where that is plainest; nothing here is shared with the package.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

U32, U64, F32 = np.uint32, np.uint64, np.float32
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]

M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
Q = (0xC000001B, 0x3F800149, 0xBF2A8369, 0x3EFEC92F, 0xBED2FBB6, 0x3EC18C5D, 0xBE7242CD)
C = (0x3F7FFFFF, 0xBEFFFFE0, 0x3D2AA76F, 0xBAB59551, 0x37C23AB1)
S = (0x3F7FFFF3, 0xBE2AA816, 0x3C083456, 0xB9423DF1)


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Random123's philox4x32 with ten rounds, in Python's own integers."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * x0, M1 * x2
        x0, x1, x2, x3 = (p1 >> 32) ^ x1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ x3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return x0, x1, x2, x3


def _words(block: int, seed: int, stream: int, direction: int) -> tuple[int, int, int, int]:
    key = (seed & 0xFFFFFFFF, seed >> 32)
    return philox((block & 0xFFFFFFFF, block >> 32, stream, direction), key)


def _f(bits: int) -> np.float32:
    return np.array([bits], dtype=U32).view(F32)[0]


def _horner(x: np.float32, coefficients: Sequence[int]) -> np.float32:
    value = _f(coefficients[-1])
    for bits in reversed(coefficients[:-1]):
        value = F32(F32(value * x) + _f(bits))
    return value


def gaussian_pair(word: int) -> tuple[np.float32, np.float32]:
    y = F32(2 * (word & 0xFFFF) + 1)
    b = int(np.array([y]).view(np.int32)[0])
    e = (b - 0x3F3504F3) >> 23
    t = F32(_f(b - (e << 23)) - F32(1))
    inner = F32(F32(F32(17 - e) * _f(0x3FB17218)) + F32(t * _horner(t, Q)))
    # the root of a float32 in float64, rounded once more, is the correctly rounded root
    r = F32(np.sqrt(np.float64(inner)))
    g = F32(F32(2 * ((word >> 16) & 0x7FFF) - 32767) * _f(0x38490FDB))
    u = F32(g * g)
    even, odd = F32(r * _horner(u, C)), F32(r * F32(g * _horner(u, S)))
    return (-even, -odd) if word >> 31 else (even, odd)


def noise(start: int, count: int, seed: int, distribution: str, stream: int, direction: int) -> Floats:
    values = np.empty(count, dtype=F32)
    held, words = -1, (0, 0, 0, 0)
    shift = 7 if distribution == "rademacher" else 3
    for place, i in enumerate(range(start, start + count)):
        if i >> shift != held:
            held = i >> shift
            words = _words(held, seed, stream, direction)
        if distribution == "rademacher":
            values[place] = -1.0 if (words[(i >> 5) & 3] >> (i & 31)) & 1 else 1.0
        else:
            values[place] = gaussian_pair(words[(i >> 1) & 3])[i & 1]
    return values


def rounding_bits(start: int, count: int, seed: int, stream: int) -> list[int]:
    found = []
    for i in range(start, start + count):
        word = _words(i >> 3, seed, stream, 0xFFFFFFFF)[(i >> 1) & 3]
        found.append(word >> 16 if i & 1 else word & 0xFFFF)
    return found


def weighted_sum(
    start: int, count: int, terms: Sequence[tuple[int, float]], seed: int, distribution: str, stream: int
) -> Floats:
    total = np.zeros(count, dtype=F32)
    for direction, coefficient in terms:
        total = total + F32(coefficient) * noise(start, count, seed, distribution, stream, direction)
    return total


def round_stochastically(value: np.float32, dtype: str, n: int) -> float:
    """docs/noise.md, "Stochastic rounding", for one finite value."""
    b = int(np.array([value]).view(U32)[0])
    if dtype == "bfloat16":
        return float(_f((b + n) & 0xFFFF0000))
    if abs(value) >= F32(2.0**-14):
        with np.errstate(over="ignore"):
            return float(np.float16(_f((b + (n >> 3)) & 0xFFFFE000)))
    q = np.floor(F32(F32(abs(value) * F32(2.0**24)) + F32(F32(n) * F32(2.0**-16))))
    return float(np.copysign(F32(q * F32(2.0**-24)), value))


def project(values: NDArray[np.float64], z: NDArray[np.float64]) -> float:
    total = 0.0
    for first in range(0, len(values), 4096):
        product = values[first : first + 4096] * z[first : first + 4096]
        lanes = [0.0] * 16
        for i, p in enumerate(product):
            lanes[i % 16] += float(p)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        total += lanes[0]
    return total


def low_rank(
    rows: range, columns: range, rank: int, seed: int, distribution: str, stream: int, direction: int
) -> Floats:
    """Section 9: a block of the noise of rank `rank` of a matrix that is large enough."""
    address = (seed, distribution, stream, direction)
    a = [noise((1 << 63) + i * rank, rank, *address) for i in rows]
    b = [noise((1 << 63) + (1 << 62) + j * rank, rank, *address) for j in columns]
    z = np.empty((len(rows), len(columns)), dtype=F32)
    scale = F32(np.float64(1) / np.sqrt(np.float64(rank)))
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            total = F32(left[0] * right[0])
            for q in range(1, rank):
                total = F32(total + F32(left[q] * right[q]))
            z[i, j] = F32(total * scale)
    return z
