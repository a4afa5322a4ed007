"""How far a Gaussian number by the special-function unit may be from the contract's: intervals, over all 2^32 words.

A number is a radius, of the low 16 bits of a word, times the sine or cosine of an angle, of the high ones: each is bounded alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from blockzo.kernels.approximate import approximate_pairs
from tests.reference.contract import C, Q, S

F32, F64 = np.float32, np.float64
Singles, Doubles = NDArray[np.float32], NDArray[np.float64]

LOG2, SQRT, TURN = 2.0**-22, 2.0**-23, 2.0**-20.5
"""Largest errors by PTX ISA 9.1: lg2.approx, absolute from one half on and else relative; sqrt.approx, relative; sin.approx and
cos.approx within a turn, absolute."""
FARTHEST, ELSEWHERE = 4.3e-5, 1.1e-5
"""Largest difference of a number, and of those whose radius is at least `LEAST`."""
LEAST = 2.0**-6
HALVES = np.arange(1 << 16)
UNITS = (2 * HALVES + 1) / 2.0**17


def _float(bits: int) -> np.float32:
    return np.array([bits], dtype=np.uint32).view(F32)[0]


def _horner(x: Singles, coefficients: tuple[int, ...]) -> Singles:
    value = np.full_like(x, _float(coefficients[-1]))
    for bits in coefficients[-2::-1]:
        value = value * x + _float(bits)
    return value


def contract_radii() -> Singles:
    """r of docs/noise.md by the low half of a word."""
    y = (2 * HALVES + 1).astype(F32)
    b = y.view(np.int32)
    e = (b - 0x3F3504F3) >> 23
    t = (b - (e << 23)).view(F32) - F32(1)
    inner = (17 - e).astype(F32) * _float(0x3FB17218) + t * _horner(t, Q)
    return np.sqrt(inner.astype(F64)).astype(F32)


def contract_turns() -> tuple[Singles, Singles]:
    """c and g * s by the high half, with the sign of bit 31."""
    g = (2 * (HALVES & 0x7FFF) - 32767).astype(F32) * _float(0x38490FDB)
    u = g * g
    sign = np.where(HALVES >> 15, F32(-1), F32(1))
    return _horner(u, C) * sign, g * _horner(u, S) * sign


def radii() -> tuple[Doubles, Doubles]:
    """Least and largest radius by the special-function unit."""
    log = np.log2(UNITS)
    off = np.where(UNITS > 0.5, LOG2, LOG2 * -log)
    # the product is rounded, which keeps order
    factor = F64(F32(-2 * np.log(2)))
    squares = [((log + side) * factor).astype(F32).astype(F64) for side in (off, -off)]
    return np.sqrt(squares[0]) * (1 - SQRT), np.sqrt(squares[1]) * (1 + SQRT)


def turns() -> tuple[Doubles, Doubles]:
    """What multiplies the radius, without the error."""
    angle = (UNITS.astype(F32) * F32(2 * np.pi)).astype(F64)
    return np.sin(angle), -np.cos(angle)


@dataclass(frozen=True)
class Folded:
    """Turns of one size in the contract (even, then odd; of each, 4 angles) as one: the contract's, and the least and largest."""

    contract: Singles
    least: Doubles
    largest: Doubles

    @staticmethod
    def of() -> Folded:
        place = HALVES & 0x7FFF
        order = np.argsort(np.minimum(place, 32767 - place), kind="stable").reshape(-1, 4)
        found: list[list[NDArray[np.floating]]] = [[], [], []]
        for wanted, made in zip(contract_turns(), turns(), strict=True):
            assert (np.sign(wanted) == np.sign(made)).all() and np.abs(made).min() > 2 * TURN
            sizes, values = np.abs(wanted)[order], np.abs(made)[order]
            assert (sizes == sizes[:, :1]).all()
            for kept, part in zip(found, (sizes[:, 0], values.min(1), values.max(1)), strict=True):
                kept.append(part)
        return Folded(*(np.concatenate(part) for part in found))


@dataclass
class Differences:
    farthest: float = 0.0
    elsewhere: float = 0.0
    """Of numbers whose radius is at least `LEAST`."""
    squares: float = 0.0
    count: int = 0
    bfloat16: int = 0
    """Numbers that may be rounded to another one."""
    float16: int = 0


def inside(least: Doubles, largest: Doubles) -> tuple[Singles, Singles]:
    """The outermost float32 numbers of intervals: an instruction's result is one."""
    low, high = least.astype(F32), largest.astype(F32)
    low = np.where(low < least, np.nextafter(low, F32(np.inf)), low)
    high = np.where(high > largest, np.nextafter(high, F32(-np.inf)), high)
    return low, high


def to_bfloat16(values: Singles) -> NDArray[np.uint32]:
    bits = values.view(np.uint32)
    return (bits + (0x7FFF + (bits >> 16 & 1))) >> 16


def to_float16(values: Singles) -> NDArray[np.uint32]:
    """Positive numbers; those below 2^-14 are multiples of 2^-24 there."""
    bits = values.view(np.uint32)
    found = ((bits + (0xFFF + (bits >> 13 & 1))) >> 13) - (112 << 10)
    small = values < 2.0**-14
    found[small] = np.rint(values[small] * F32(2.0**24)).astype(np.uint32)
    return found


def differences(halves: NDArray[np.integer]) -> Differences:
    """Over all words with one of these low halves, with the largest errors in the worst directions."""
    found, turn, wanted = Differences(), Folded.of(), contract_radii()
    least, largest = inside(*radii())
    low_turn, high_turn = inside(turn.least - TURN, turn.largest + TURN)
    for n in halves:
        z, low, high = wanted[n] * turn.contract, least[n] * low_turn, largest[n] * high_turn
        apart = np.maximum(high - z, z - low)
        most = float(apart.max())
        found.farthest = max(found.farthest, most)
        if wanted[n] >= LEAST:
            found.elsewhere = max(found.elsewhere, most)
        found.squares += float(np.dot(apart, apart))
        found.count += len(z)
        # rounding keeps order; the contract's polynomials may be farther from the truth than the unit
        low, high = np.minimum(low, z), np.maximum(high, z)
        found.bfloat16 += int(np.count_nonzero(to_bfloat16(low) != to_bfloat16(high)))
        found.float16 += int(np.count_nonzero(to_float16(low) != to_float16(high)))
    return found


@triton.jit
def pairs(out, words, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    even, odd = approximate_pairs(tl.load(words + place).to(tl.uint32, bitcast=True))
    tl.store(out + 2 * place, even)
    tl.store(out + 2 * place + 1, odd)


def some_words() -> NDArray[np.uint32]:
    """Every low half with some high half, and the other way round; the ends of both with each other."""
    other = np.random.default_rng(0).permutation(HALVES)
    # as many again: the number is a power of two
    ends = np.array(list(product((0, 1, 65534, 65535), repeat=2)) * 8192)
    low, high = np.concatenate([HALVES, other, ends[:, 0]]), np.concatenate([other, HALVES, ends[:, 1]])
    return (low | high << 16).astype(np.uint32)


def contract_pairs(words: NDArray[np.uint32]) -> Singles:
    radius = contract_radii()[words & 0xFFFF]
    return np.stack([radius * turn[words >> 16] for turn in contract_turns()], axis=1)


def farthest_allowed(words: NDArray[np.uint32]) -> Doubles:
    radius = contract_radii()[words & 0xFFFF]
    return np.where(radius < LEAST, FARTHEST, ELSEWHERE)[:, None]
