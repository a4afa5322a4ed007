"""Noise of a low rank: its factors, and matrices or blocks of them moved along their products by all steps.

Experimental: never run on a GPU.

Launch with `enable_fp_fusion=False`, as all kernels of noise.
"""

import triton
import triton.language as tl

from blockzo.kernels.moves import PERTURB, SHIFT, STEP_FIELDS, number, unsigned
from blockzo.kernels.noise import (
    ROUNDING_DIRECTION,
    gaussian_pairs,
    narrow,
    narrow_stochastically,
    philox,
    widen,
    words_of,
)


@triton.jit
def fill_factors(
    out,  # float32 [draws, count]
    draws,  # int32 [draws, 3]: seed low, seed high, direction
    first_block,  # Philox block of the first value: its index lies above 2^63, which no int64 holds
    lead,  # values of that block before it
    count,
    blocks,  # programs a draw
    stream,
    GAUSSIAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    draw = program // blocks
    at = (program % blocks) * BLOCK
    key0, key1 = unsigned(draws + 3 * draw), unsigned(draws + 3 * draw + 1)
    direction, of = unsigned(draws + 3 * draw + 2), tl.cast(stream, tl.uint32)
    if GAUSSIAN:
        block = first_block + at // 8 + tl.arange(0, BLOCK // 8)
        word = tl.reshape(words_of(block.to(tl.int64), key0, key1, of, direction), [BLOCK // 2])
        even, odd = gaussian_pairs(word)
        values = tl.interleave(even, odd)
    else:
        block = first_block + at // 128 + tl.arange(0, BLOCK // 128)
        word = tl.reshape(words_of(block.to(tl.int64), key0, key1, of, direction), [BLOCK // 32])
        bit = (word[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) & 1
        values = tl.reshape(1.0 - 2.0 * bit.to(tl.float32), [BLOCK])
    place = at + tl.arange(0, BLOCK) - lead
    tl.store(out + draw.to(tl.int64) * count + place, values, mask=(place >= 0) & (place < count))


@triton.jit
def rounding_bits_at(index, key0, key1, stream):
    """The 16 random bits of elements anywhere; `index` int64."""
    w0, w1, w2, w3 = philox(index >> 3, key0, key1, stream, ROUNDING_DIRECTION)
    which = (index >> 1) & 3
    word = tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))
    return tl.where((index & 1) == 1, word >> 16, word & 0xFFFF)


@triton.jit
def move_low_rank(
    weights,
    a,  # float32 [terms, a_count]: of the rows, RANK numbers each
    b,  # float32 [terms, b_count]: of the columns
    steps,  # int32 [steps, 6], as in moves.py
    terms,  # int32 [terms, 2]
    step_count,
    rows,
    columns,
    blocks,  # programs along the columns
    row_stride,  # in memory
    column_stride,
    a_count,
    b_count,
    row_step,  # in the whole matrix
    column_step,
    index,  # of the first element in the whole matrix of `width` columns
    width,
    stream,
    norm,
    RANK: tl.constexpr,
    DTYPE: tl.constexpr,
    MODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    JOINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    i = ((program // blocks) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    j = ((program % blocks) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    has_row, has_column = i < rows, j < columns
    inside = has_row[:, None] & has_column[None, :]
    place = weights + i[:, None] * row_stride + j[None, :] * column_stride
    stored = tl.load(place, mask=inside, other=0.0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for s in range(step_count):
        step = steps + s * STEP_FIELDS
        value = widen(stored)
        if not JOINS:
            total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for t in range(tl.load(step + 2), tl.load(step + 3)):
            of_rows = a + tl.cast(t, tl.int64) * a_count + i * row_step * RANK
            of_columns = b + tl.cast(t, tl.int64) * b_count + j * column_step * RANK
            z = (
                tl.load(of_rows, mask=has_row, other=0.0)[:, None]
                * tl.load(of_columns, mask=has_column, other=0.0)[None, :]
            )
            for q in range(1, RANK):
                left = tl.load(of_rows + q, mask=has_row, other=0.0)
                right = tl.load(of_columns + q, mask=has_column, other=0.0)
                z += left[:, None] * right[None, :]
            moved_by = number(terms + 2 * t + 1) * (z * norm)
            # a sum begins at +0, a single perturbation does not
            if MODE == PERTURB:
                total = moved_by
            else:
                total += moved_by
        if MODE == PERTURB or MODE == SHIFT:
            value += total
        else:
            value = value * number(step + 4) - total
        moved = narrow(value, DTYPE)
        if STOCHASTIC and DTYPE != tl.float32:
            if (tl.load(step + 5) & 1) != 0:
                where = index + i[:, None] * row_step * width + j[None, :] * column_step
                bits = rounding_bits_at(where, unsigned(step), unsigned(step + 1), tl.cast(stream, tl.uint32))
                moved = narrow_stochastically(value, bits, DTYPE)
        if JOINS:
            last = (tl.load(step + 5) & 2) == 0
            stored = tl.where(last, moved, stored)
            total = tl.where(last, 0.0, total)
        else:
            stored = moved
    tl.store(place, stored, mask=inside)
