"""A linear layer whose weight is moved in registers while it is multiplied; both signs of a direction share each tile of it.

Experimental: never run on a GPU.
"""

import triton
import triton.language as tl

from blockzo.kernels.moves import number, unsigned
from blockzo.kernels.noise import flipped, gaussian_pairs, narrow, widen, words_of


def tiles(tokens: int, gaussian: bool) -> dict[str, int]:
    """Tile, warps and stages for so many tokens a group, chosen by compiling: the largest that spill on none of sm_80, 90, 100.

    Both signs share a tile of noise up to 16 tokens; beyond, one sign with a wider tile needs as little noise, in fewer
    registers.
    """
    width = 64 if gaussian else 128
    if tokens <= 16:
        return {"ROWS": 64, "TOKENS": 16, "WIDTH": width, "PAIR": 1, "num_warps": 4, "num_stages": 3}
    count = 32 if tokens <= 32 else 64
    return {"ROWS": 64, "TOKENS": count, "WIDTH": width, "PAIR": 0, "num_warps": 4, "num_stages": 2}


TASK_FIELDS = tl.constexpr(3)
"""int32 fields of a task: group, group of the other sign, its term."""


@triton.jit
def tile_noise(
    first, apart, scale, key0, key1, stream, direction, GAUSSIAN: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """scale * z of ROWS x WIDTH elements; row r begins at first + r * apart, multiples of 128. Philox runs on the small tile of
    block numbers, or each element would pay for ten rounds of its own.
    """
    row = first + tl.arange(0, ROWS).to(tl.int64) * apart
    if GAUSSIAN:
        block = (row >> 3)[:, None] + tl.arange(0, WIDTH // 8)[None, :]
        word = tl.reshape(words_of(block, key0, key1, stream, direction), [ROWS, WIDTH // 2])
        even, odd = gaussian_pairs(word)
        return tl.interleave(scale * even, scale * odd)
    else:
        block = (row >> 7)[:, None] + tl.arange(0, WIDTH // 128)[None, :]
        word = tl.reshape(words_of(block, key0, key1, stream, direction), [ROWS * WIDTH // 32])
        return tl.reshape(flipped(scale, word, ROWS * WIDTH), [ROWS, WIDTH])


@triton.jit(do_not_specialize=["start", "stream"])
def linear(
    out,  # [groups, tokens, rows], dense
    x,  # [groups, tokens, width], strides x_group, x_row, 1
    weight,  # [rows, width], strides apart, 1
    bias,  # [rows] or [groups, rows]; not read where BIAS is false
    tasks,  # int32 [tasks, 3]
    steps,  # int32 [1, 6] and [terms, 2], as in moves.py
    terms,
    tokens,
    rows,
    width,
    x_group,
    x_row,
    apart,
    start,  # index of weight[0, 0] in its logical tensor, a multiple of 128, as `apart` is
    bias_group,
    stream,
    PAIR: tl.constexpr,
    BIAS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Y^T = W X^T: the operand with the noise is the left one, which on Hopper comes from registers."""
    # tasks vary fastest, so that programs which read one tile of the weight run side by side
    task = tasks + tl.program_id(0) * TASK_FIELDS
    group, other = tl.load(task).to(tl.int64), tl.load(task + 1).to(tl.int64)
    term = terms + 2 * tl.load(task + 2)
    key0, key1, direction, scale = unsigned(steps), unsigned(steps + 1), unsigned(term), number(term + 1)
    n = tl.program_id(1) * ROWS
    row = n + tl.arange(0, ROWS)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, WIDTH)
    w_place = weight + row.to(tl.int64)[:, None] * apart + column[None, :]
    x_place = x + group * x_group + token.to(tl.int64)[None, :] * x_row + column[:, None]
    o_place = x + other * x_group + token.to(tl.int64)[None, :] * x_row + column[:, None]
    first = start + n.to(tl.int64) * apart
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    second = tl.zeros([ROWS, TOKENS], tl.float32)
    for k in range(0, width, WIDTH):
        in_w = (row < rows)[:, None] & (k + column < width)[None, :]
        in_x = (token < tokens)[None, :] & (k + column < width)[:, None]
        w = widen(tl.load(w_place + k, mask=in_w, other=0.0))
        move = tile_noise(
            first + k, apart, scale, key0, key1, stream.to(tl.uint32, bitcast=True), direction, GAUSSIAN, ROWS, WIDTH
        )
        # a masked column of the weight holds noise alone, which meets the zeros of x
        left = tl.load(x_place + k, mask=in_x, other=0.0).to(COMPUTE)
        total = tl.dot(narrow(w + move, COMPUTE), left, total, input_precision="ieee")
        if PAIR:
            right = tl.load(o_place + k, mask=in_x, other=0.0).to(COMPUTE)
            second = tl.dot(narrow(w - move, COMPUTE), right, second, input_precision="ieee")
    inside = (row < rows)[:, None] & (token < tokens)[None, :]
    place = token.to(tl.int64)[None, :] * rows + row[:, None]
    if BIAS:
        total += tl.load(bias + group * bias_group + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    tl.store(out + group * tokens * rows + place, narrow(total, out.dtype.element_ty), mask=inside)
    if PAIR:
        if BIAS:
            second += tl.load(bias + other * bias_group + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        tl.store(out + other * tokens * rows + place, narrow(second, out.dtype.element_ty), mask=inside)
