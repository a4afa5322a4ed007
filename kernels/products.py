"""A linear layer's two products apart: y_g = X_g W^T + c_g (X_g Z^T), the noise alone as an operand and the scale at the end.

Experimental: never run on a GPU.

What several groups have in common is multiplied once: X W^T where they share their input, X Z^T where they share input and
direction. One load of the weight's tile serves several directions. Every product is the same chain over K whatever is shared.
"""

import triton
import triton.language as tl

from blockzo.kernels.approximate import approximate_pairs
from blockzo.kernels.moves import number, unsigned
from blockzo.kernels.noise import gaussian_pairs, narrow, words_of

SLOTS = {
    (16, False, False): (1, 2, 2),
    (32, False, False): (0, 1, 1),
    (64, False, False): (0, 1, 0),
    (16, True, False): (4, 4, 4),
    (32, True, False): (3, 3, 3),
    (64, True, False): (0, 2, 2),
    (16, False, True): (2, 2, 2),
    (32, False, True): (1, 1, 2),
    (64, False, True): (0, 1, 0),
    (16, True, True): (2, 2, 4),
    (32, True, True): (2, 2, 3),
    (64, True, True): (1, 2, 3),
}
"""(tokens of a tile, shared input, Gaussian) -> directions of a program on each of `GENERATIONS`, found by compiling: the most
that do not spill. Of Gaussian noise, which costs more to make than to load weights for, more than two only where registers leave
as many programs a multiprocessor. 0: the tile is too large.
"""
GENERATIONS = (8, 9, 10)
"""Major compute capability. Others are taken as the first, whose tensor cores all later ones but these two have."""


def tiles(tokens: int, gaussian: bool, directions: int, paired: bool, shared: bool, major: int) -> dict[str, int]:
    """Tile, warps and stages for so many tokens a group; values do not depend on them.

    Args:
        directions: how many there are, a pair of groups counted once.
        paired: two groups to some direction.
        major: of the compute capability.
    """
    column = GENERATIONS.index(major) if major in GENERATIONS else 0
    hopper = major == 9
    needed = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    count, most = max(
        (n, SLOTS[n, shared, gaussian][column])
        for n in (16, 32, 64)
        if n <= needed and SLOTS[n, shared, gaussian][column]
    )
    # as even as it gets: five directions as three and two, not as four and one
    slots = -(-directions // -(-directions // most))
    tile = {"SLOTS": slots, "SIDES": 2 if paired else 1, "SHARED": int(shared)}
    # with 64 rows this tile spills there
    warps = 8 if hopper and count == 64 and not shared else 4
    tile |= {"ROWS": 16 * warps, "TOKENS": count, "WIDTH": 64 if gaussian else 128, "WAITS": int(hopper)}
    # with three stages the Gaussian tile spills on Blackwell
    stages = 3 if count == 16 and not (gaussian and major == 10) else 2
    return {**tile, "num_warps": warps, "num_stages": stages}


def part_count(rows: int, width: int) -> int:
    """Parts of K that programs of their own sum up: by the weight's shape alone, as they decide the order of the sum. About 256
    programs keep a large GPU's cores busy; a part of less than 1,024 costs more than it brings.
    """
    return max(1, min(256 // max(1, -(-rows // 64)), width // 1024))


@triton.jit
def noise_operand(
    first,
    apart,
    key0,
    key1,
    stream,
    direction,
    GAUSSIAN: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """z of ROWS x WIDTH elements in the 16-bit dtype that is multiplied: signs are exact there, Gaussian numbers are rounded, the
    contract's or, where APPROXIMATE, the special-function unit's. Row r begins at first + r * apart. Philox runs on the small
    tile of block numbers, or each element would pay for ten rounds.
    """
    row = first + tl.arange(0, ROWS).to(tl.int64) * apart
    if GAUSSIAN:
        block = (row >> 3)[:, None] + tl.arange(0, WIDTH // 8)[None, :]
        word = tl.reshape(words_of(block, key0, key1, stream, direction), [ROWS, WIDTH // 2])
        if APPROXIMATE:
            even, odd = approximate_pairs(word)
        else:
            even, odd = gaussian_pairs(word)
        return tl.interleave(narrow(even, COMPUTE), narrow(odd, COMPUTE))
    else:
        # two numbers a register, from two bits at once
        block = (row >> 7)[:, None] + tl.arange(0, WIDTH // 128)[None, :]
        word = tl.reshape(words_of(block, key0, key1, stream, direction), [ROWS * WIDTH // 32])
        bits = word[:, None] << (30 - 2 * tl.arange(0, 16)).to(tl.uint32)[None, :]
        ONES: tl.constexpr = 0x3F803F80 if COMPUTE == tl.bfloat16 else 0x3C003C00
        pair = (bits & 0x80000000) | ((bits >> 15) & 0x8000) | ONES
        even = pair.to(tl.uint16).to(COMPUTE, bitcast=True)
        odd = (pair >> 16).to(tl.uint16).to(COMPUTE, bitcast=True)
        return tl.reshape(tl.join(even, odd), [ROWS, WIDTH])


@triton.jit(do_not_specialize=["task_count", "bands", "groups", "tokens", "parts", "start", "stream"])
def products(
    out,  # [groups, tokens, rows], dense; with parts, float32 [parts, groups, tokens, rows]
    x,  # [groups, tokens, width], strides x_group (not used where SHARED), x_row, 1
    weight,  # [rows, width] in the dtype of x, strides apart, 1
    bias,  # [rows] or [groups, rows]; not read where BIAS is false
    tasks,  # int32 [tasks, SLOTS, SIDES]: groups of one direction; -1: none
    steps,  # int32 [1, 6] and [groups, 2], as in moves.py
    terms,
    task_count,
    bands,  # of ROWS rows
    groups,
    tokens,
    rows,
    width,
    parts,
    span,  # columns of a part, a multiple of WIDTH
    x_group,
    x_row,
    apart,
    start,  # index of weight[0, 0] in its logical tensor, a multiple of 128, as `apart` is
    bias_group,
    stream,
    SLOTS: tl.constexpr,
    SIDES: tl.constexpr,
    SHARED: tl.constexpr,
    BIAS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WAITS: tl.constexpr,
):
    """Y^T = W X^T. SIDES groups of a direction lie side by side in one operand, or are one where SHARED.

    WAITS: for Hopper, whose matrix products read z from registers after they were issued. Triton (3.6 and 3.7) lets those of the
    next iteration overwrite them: it waits for all products but the latest N - 1, behind the new one (triton#9433).
    """
    COLUMNS: tl.constexpr = TOKENS if SHARED else SIDES * TOKENS
    # tasks vary fastest, so that programs which read one tile of the weight run side by side
    task = tasks + tl.program_id(0) % task_count * (SLOTS * SIDES)
    tile = tl.program_id(0) // task_count
    key0, key1 = unsigned(steps), unsigned(steps + 1)
    n = tile % bands * ROWS
    part = tile // bands % parts
    row = n + tl.arange(0, ROWS)
    place = tl.arange(0, COLUMNS)
    token = tile // bands // parts * TOKENS + place % TOKENS
    column = tl.arange(0, WIDTH)
    w_place = weight + row.to(tl.int64)[:, None] * apart + column[None, :]
    x_place = x + token.to(tl.int64)[None, :] * x_row + column[:, None]
    first = start + n.to(tl.int64) * apart
    directions, x_places, in_x, plain, moved = (), (), (), (), ()
    for s in tl.static_range(SLOTS):
        directions += (unsigned(terms + 2 * tl.maximum(tl.load(task + s * SIDES), 0)),)
        moved += (tl.zeros([ROWS, COLUMNS], tl.float32),)
        if s == 0 or not SHARED:
            plain += (tl.zeros([ROWS, COLUMNS], tl.float32),)
            if SHARED:
                x_places += (x_place,)
                in_x += ((token < tokens)[None, :],)
            else:
                group = tl.load(task + s * SIDES + place // TOKENS)
                x_places += (x_place + group.to(tl.int64)[None, :] * x_group,)
                in_x += (((token < tokens) & (group >= 0))[None, :],)
    for k in range(part * span, tl.minimum(part * span + span, width), WIDTH):
        inside = k + column < width
        w = tl.load(w_place + k, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        rights, plain_next, moved_next = (), (), ()
        for s in tl.static_range(SLOTS):
            if s == 0 or not SHARED:
                rights += (tl.load(x_places[s] + k, mask=inside[:, None] & in_x[s], other=0.0),)
                plain_next += (tl.dot(w, rights[s], plain[s], input_precision="ieee"),)
            z = noise_operand(
                first + k,
                apart,
                key0,
                key1,
                stream.to(tl.uint32, bitcast=True),
                directions[s],
                GAUSSIAN,
                APPROXIMATE,
                w.dtype,
                ROWS,
                WIDTH,
            )
            # beyond the weight's last column there is noise all the same, which meets the zeros of x
            product = tl.dot(z, rights[0 if SHARED else s], moved[s], input_precision="ieee")
            if WAITS:
                # always true: a sum that the loop itself reads is waited for, before noise of the next one overwrites z
                product = tl.where(k < width, product, 0.0)
            moved_next += (product,)
        plain, moved = plain_next, moved_next
    out += part.to(tl.int64) * groups * tokens * rows
    for s in tl.static_range(SLOTS):
        for side in tl.static_range(SIDES if SHARED else 1):
            if SHARED:
                group = tl.load(task + s * SIDES + side) + place * 0
            else:
                group = tl.load(task + s * SIDES + place // TOKENS)
            # columns of no group are left out
            there = (group >= 0) & (token < tokens)
            scale = number(terms + 2 * tl.maximum(group, 0) + 1)
            value = plain[0 if SHARED else s] + scale[None, :] * moved[s]
            wide = group.to(tl.int64)[None, :]
            stored = (row < rows)[:, None] & there[None, :]
            if BIAS:
                value += tl.load(bias + wide * bias_group + row[:, None], mask=stored, other=0.0).to(tl.float32)
            target = out + (wide * tokens + token[None, :]) * rows + row[:, None]
            tl.store(target, narrow(value, out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["blocks", "lines", "tokens", "parts"])
def add_parts(
    out,  # [groups, tokens, rows], dense
    sums,  # float32 [parts, groups, tokens, rows]
    bias,
    blocks,  # of a line
    lines,  # groups * tokens
    tokens,
    rows,
    parts,
    bias_group,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One line of `out` a program; parts are added in order."""
    line = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(sums + line * rows + row, mask=row < rows, other=0.0)
    for part in range(1, parts):
        total += tl.load(sums + (part * lines.to(tl.int64) + line) * rows + row, mask=row < rows, other=0.0)
    if BIAS:
        total += tl.load(bias + line // tokens * bias_group + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(out + line * rows + row, narrow(total, out.dtype.element_ty), mask=row < rows)
