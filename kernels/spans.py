"""Moved copies: rows of a tensor (all of it, a panel, or the rows that an embedding reads) into dense memory.

Experimental: never run on a GPU.
"""

import triton
import triton.language as tl

from blockzo.kernels.moves import number, unsigned
from blockzo.kernels.noise import narrow, scaled, widen


@triton.jit(do_not_specialize=["start", "blocks", "stream"])
def move_rows(
    out,  # [count, width], dense
    source,  # row r begins at element r * apart
    rows,  # int64 [count]: which rows; not read where GATHER is false
    steps,
    terms,
    start,  # index of the source's first element in its logical tensor
    apart,
    width,
    blocks,  # of a row: consecutive programs
    stream,
    OUT: tl.constexpr,
    GATHER: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[m] = round(source row + c z of that row); ALIGNED: start and apart are multiples of 128."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    taken = row
    if GATHER:
        taken = tl.load(rows + row)
    begin = start + taken * apart
    # noise is made from a multiple of 128 on
    lead = 0
    if not ALIGNED:
        lead = (begin & 127).to(tl.int32)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK - lead
    first = begin + column
    if ALIGNED:
        first = tl.multiple_of(first, 128)
    key0, key1 = unsigned(steps), unsigned(steps + 1)
    z = scaled(
        first, number(terms + 1), key0, key1, stream.to(tl.uint32, bitcast=True), unsigned(terms), GAUSSIAN, BLOCK
    )
    columns = column + tl.arange(0, BLOCK)
    inside = (columns >= 0) & (columns < width)
    value = widen(tl.load(source + taken * apart + columns, mask=inside, other=0.0))
    tl.store(out + row * width + columns, narrow(value + z, OUT), mask=inside)
