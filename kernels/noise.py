"""Noise contract v1 in Triton: Philox words, and what Rademacher, Gaussian and stochastic rounding make of them.

Experimental: never run on a GPU.

Launch with `enable_fp_fusion=False`: every float operation is rounded on its own. `first` is the index of the first element in
the logical tensor, a multiple of 128; results are flat and in the order of the elements.
"""

import os
import struct

import triton
import triton.language as tl


def _float(bits: int) -> tl.constexpr:
    return tl.constexpr(struct.unpack("<f", struct.pack("<I", bits))[0])


INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""The interpreter truncates float32 to bfloat16 and knows no bfloat16 arithmetic."""

LOG_SCALE, ANGLE_SCALE = _float(0x3FB17218), _float(0x38490FDB)
Q0, Q1, Q2, Q3 = _float(0xC000001B), _float(0x3F800149), _float(0xBF2A8369), _float(0x3EFEC92F)
Q4, Q5, Q6 = _float(0xBED2FBB6), _float(0x3EC18C5D), _float(0xBE7242CD)
C0, C1, C2, C3, C4 = (
    _float(0x3F7FFFFF),
    _float(0xBEFFFFE0),
    _float(0x3D2AA76F),
    _float(0xBAB59551),
    _float(0x37C23AB1),
)
S0, S1, S2, S3 = _float(0x3F7FFFF3), _float(0xBE2AA816), _float(0x3C083456), _float(0xB9423DF1)
ROUNDING_DIRECTION = tl.constexpr(0xFFFFFFFF)


@triton.jit
def philox(block, key0, key1, stream, direction):
    """Philox4x32-10 (Salmon et al., SC'11): four uint32 words for each int64 block number; the other arguments are uint32."""
    x0 = block.to(tl.uint32)
    x1 = (block >> 32).to(tl.uint32)
    x2 = tl.zeros_like(x0) + stream
    x3 = tl.zeros_like(x0) + direction
    for _ in tl.static_range(10):
        # one wide multiplication gives both halves
        p0 = x0.to(tl.uint64) * 0xD2511F53
        p1 = x2.to(tl.uint64) * 0xCD9E8D57
        x0 = (p1 >> 32).to(tl.uint32) ^ x1 ^ key0
        x2 = (p0 >> 32).to(tl.uint32) ^ x3 ^ key1
        x1 = p1.to(tl.uint32)
        x3 = p0.to(tl.uint32)
        key0 = key0 + 0x9E3779B9
        key1 = key1 + 0xBB67AE85
    return x0, x1, x2, x3


@triton.jit
def words_of(block, key0, key1, stream, direction):
    """The words in order along a new last dimension of 4."""
    w0, w1, w2, w3 = philox(block, key0, key1, stream, direction)
    pairs = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(pairs, block.shape + [4])


@triton.jit
def gaussian_pairs(word):
    """Box-Muller pair of each word, as the contract spells it."""
    y = (((word & 0xFFFF) << 1) | 1).to(tl.int32).to(tl.float32)
    bits = y.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    t = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = t * Q6 + Q5
    p = p * t + Q4
    p = p * t + Q3
    p = p * t + Q2
    p = p * t + Q1
    p = p * t + Q0
    radius = tl.sqrt_rn((17 - e).to(tl.float32) * LOG_SCALE + t * p)
    g = (((word >> 15) & 0xFFFE).to(tl.int32) - 32767).to(tl.float32) * ANGLE_SCALE
    u = g * g
    c = u * C4 + C3
    c = c * u + C2
    c = c * u + C1
    c = c * u + C0
    s = u * S3 + S2
    s = s * u + S1
    s = s * u + S0
    sign = word & 0x80000000
    even = ((radius * c).to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    odd = ((radius * (g * s)).to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    return even, odd


@triton.jit
def scaled(
    first,
    scale,
    key0,
    key1,
    stream,
    direction,
    GAUSSIAN: tl.constexpr,
    BLOCK: tl.constexpr,
    FROM_ZERO: tl.constexpr = False,
):
    """scale * z for BLOCK elements from index `first` on, float32; FROM_ZERO, of signs alone: +0 + scale * z."""
    if GAUSSIAN:
        block = (first >> 3) + tl.arange(0, BLOCK // 8)
        word = tl.reshape(words_of(block, key0, key1, stream, direction), [BLOCK // 2])
        even, odd = gaussian_pairs(word)
        return tl.interleave(scale * even, scale * odd)
    else:
        block = (first >> 7) + tl.arange(0, BLOCK // 128)
        word = tl.reshape(words_of(block, key0, key1, stream, direction), [BLOCK // 32])
        return flipped(scale, word, BLOCK, FROM_ZERO)


@triton.jit
def flipped(scale, word, BLOCK: tl.constexpr, FROM_ZERO: tl.constexpr):
    """scale with the sign that each bit of the words [BLOCK / 32] asks for, bit 0 first; FROM_ZERO: a zero stays +0."""
    bit = (31 - tl.arange(0, 32)).to(tl.uint32)
    size, mask = scale.to(tl.uint32, bitcast=True), 0x80000000
    if FROM_ZERO:
        zero = scale == 0.0
        size, mask = tl.where(zero, 0, size), tl.where(zero, 0, mask).to(tl.uint32)
    sign = (word[:, None] << bit[None, :]) & mask
    moved = (sign ^ size).to(tl.float32, bitcast=True)
    return tl.reshape(moved, [BLOCK])


@triton.jit
def rounding_bits(first, key0, key1, stream, BLOCK: tl.constexpr):
    """The 16 random bits of each element that stochastic rounding adds."""
    block = (first >> 3) + tl.arange(0, BLOCK // 8)
    word = tl.reshape(words_of(block, key0, key1, stream, ROUNDING_DIRECTION), [BLOCK // 2])
    return tl.interleave(word & 0xFFFF, word >> 16)


@triton.jit
def widen(stored):
    """To float32; the interpreter loses bfloat16's subnormal numbers unless it is done by bits."""
    if INTERPRETED and stored.dtype == tl.bfloat16:
        bits = stored.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


@triton.jit
def narrow(value, DTYPE: tl.constexpr):
    """float32 -> DTYPE, to nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(value != value, 0x7FC0, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(DTYPE)


@triton.jit
def narrow_stochastically(value, bits, DTYPE: tl.constexpr):
    """float32 -> bfloat16 or float16 with 16 random bits an element (docs/noise.md, "Stochastic rounding")."""
    pattern = value.to(tl.uint32, bitcast=True)
    size = tl.abs(value)
    finite = size < float("inf")
    if DTYPE == tl.bfloat16:
        moved = ((pattern + bits) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        large = ((pattern + (bits >> 3)) & 0xFFFFE000).to(tl.float32, bitcast=True)
        ticks = tl.floor(size * 16777216.0 + bits.to(tl.int32).to(tl.float32) * 0.0000152587890625)
        small = (ticks * 5.9604644775390625e-08).to(tl.uint32, bitcast=True) | (pattern & 0x80000000)
        moved = tl.where(size >= 0.00006103515625, large, small.to(tl.float32, bitcast=True))
    return narrow(tl.where(finite, moved, value), DTYPE)
