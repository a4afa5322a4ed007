"""perturb_, shift_, update_ and replay_ over a whole list of tensors, or of parts of tensors, in one launch.

Experimental: never run on a GPU.

A program takes one chunk of BLOCK elements of one tensor through all steps: each weight is read once, rounded to its dtype at
every step, and written once.
"""

import triton
import triton.language as tl

from blockzo.kernels.noise import narrow, narrow_stochastically, rounding_bits, scaled, widen

PERTURB, SHIFT, UPDATE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
STEP_FIELDS = tl.constexpr(6)
"""int32 fields of a step: seed low, seed high, first term, end of its terms, bits of the factor, flags: 1 where rounding is
stochastic, 2 where the sum goes on in the next step, which alone moves and rounds the weight."""


@triton.jit
def unsigned(pointer):
    return tl.load(pointer).to(tl.uint32, bitcast=True)


@triton.jit
def number(pointer):
    return tl.load(pointer).to(tl.float32, bitcast=True)


@triton.jit
def move(
    tensors,  # int64 [tensors, 3]: address, elements, stream
    chunks,  # int32 [programs, 2]: tensor, number of its chunk
    steps,  # int32 [steps, 6]
    terms,  # int32 [terms, 2]: direction, bits of the coefficient
    step_count,
    DTYPE: tl.constexpr,
    MODE: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    JOINS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    RUNS: tl.constexpr,
):
    """RUNS: `tensors` are runs of consecutive indices, int64 [runs, 4]: address and elements, both from the multiple of 128 at
    or before the run; stream; index of the run's first element.
    """
    program = tl.program_id(0)
    tensor = tensors + tl.load(chunks + 2 * program) * (4 if RUNS else 3)
    first = tl.load(chunks + 2 * program + 1).to(tl.int64) * BLOCK
    count = tl.load(tensor + 1)
    stream = tl.load(tensor + 2).to(tl.uint32)
    base = tl.load(tensor).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    place = base + first + tl.arange(0, BLOCK)
    inside = first + tl.arange(0, BLOCK) < count
    lead = 0
    if RUNS:
        begin = tl.load(tensor + 3)
        lead = begin & 127
        inside = inside & (first + tl.arange(0, BLOCK) >= lead)
    # a mask would keep the loads of whole chunks from being 128 bits wide
    whole = first + BLOCK <= count
    if RUNS:
        whole = whole & (first >= lead)
        # noise is made from a multiple of 128 on
        first += begin - lead
    if whole:
        stored = tl.load(place)
    else:
        stored = tl.load(place, mask=inside, other=0.0)
    total = tl.zeros([BLOCK], tl.float32)
    for s in range(step_count):
        step = steps + s * STEP_FIELDS
        key0, key1 = unsigned(step), unsigned(step + 1)
        value = widen(stored)
        if MODE == PERTURB:
            value += scaled(first, number(terms + 1), key0, key1, stream, unsigned(terms), GAUSSIAN, BLOCK)
        else:
            own, end = tl.load(step + 2), tl.load(step + 3)
            if not JOINS and not GAUSSIAN:
                # the sum begins with the first direction's signs, or with zeros: +0 + -0 is +0
                there = own < end
                direction = tl.load(terms + 2 * own, mask=there, other=0).to(tl.uint32, bitcast=True)
                size = tl.load(terms + 2 * own + 1, mask=there, other=0).to(tl.float32, bitcast=True)
                total = scaled(first, size, key0, key1, stream, direction, False, BLOCK, True)
                own += 1
            elif not JOINS:
                total = tl.zeros([BLOCK], tl.float32)
            for t in range(own, end):
                term = terms + 2 * t
                total += scaled(first, number(term + 1), key0, key1, stream, unsigned(term), GAUSSIAN, BLOCK)
            if MODE == SHIFT:
                value += total
            else:
                factor = number(step + 4)
                if factor != 1.0:
                    value = value * factor
                value -= total
        moved = narrow(value, DTYPE)
        if STOCHASTIC and DTYPE != tl.float32:
            if (tl.load(step + 5) & 1) != 0:
                bits = rounding_bits(first, key0, key1, stream, BLOCK)
                moved = narrow_stochastically(value, bits, DTYPE)
        if JOINS:
            last = (tl.load(step + 5) & 2) == 0
            stored = tl.where(last, moved, stored)
            total = tl.where(last, 0.0, total)
        else:
            stored = moved
    if whole:
        tl.store(place, stored)
    else:
        tl.store(place, stored, mask=inside)
