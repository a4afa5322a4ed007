"""<delta, z_k>: 16 float64 lanes over chunks of 4,096 elements, in the order that every backend keeps.

Experimental: never run on a GPU.
"""

import triton
import triton.language as tl

from blockzo.kernels.moves import unsigned
from blockzo.kernels.noise import gaussian_pairs, widen, words_of


@triton.jit(do_not_specialize=["count", "chunk_count", "direction_count", "stream"])
def project(
    sums,  # float64 [directions, chunks, 16]
    delta,
    count,
    chunk_count,
    steps,
    terms,
    direction_count,
    stream,
    GAUSSIAN: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    k = tl.program_id(0) % direction_count
    key0, key1 = unsigned(steps), unsigned(steps + 1)
    direction = unsigned(terms + 2 * k)
    chunk = (tl.program_id(0) // direction_count).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)
    lane = tl.arange(0, 16)
    total = tl.zeros([CHUNKS, 16], tl.float64)
    for part in range(32):
        first = chunk * 4096 + part * 128
        if not GAUSSIAN:
            word = words_of(first >> 7, key0, key1, stream.to(tl.uint32, bitcast=True), direction)
        for row in tl.static_range(8):
            at = first[:, None] + (row * 16 + lane)[None, :]
            value = widen(tl.load(delta + at, mask=at < count, other=0.0))
            if GAUSSIAN:
                block = ((first + row * 16) >> 3)[:, None] + tl.arange(0, 2)[None, :]
                words = tl.reshape(
                    words_of(block, key0, key1, stream.to(tl.uint32, bitcast=True), direction), [CHUNKS, 8]
                )
                even, odd = gaussian_pairs(words)
                z = tl.interleave(even, odd)
            else:
                chosen = tl.sum(tl.where(tl.arange(0, 4)[None, :] == row // 2, word, 0), axis=1)
                shift = ((row % 2) * 16 + lane).to(tl.uint32)
                z = 1.0 - 2.0 * ((chosen[:, None] >> shift[None, :]) & 1).to(tl.float32)
            total += value.to(tl.float64) * z.to(tl.float64)
    place = (k.to(tl.int64) * chunk_count + chunk)[:, None] * 16 + lane[None, :]
    tl.store(sums + place, total, mask=(chunk < chunk_count)[:, None])
