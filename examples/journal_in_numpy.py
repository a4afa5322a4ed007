"""Reads a journal and replays it with NumPy alone: docs/journal.md and docs/noise.md as a program, for whoever ports them.

    python examples/journal_in_numpy.py base.npz run.bz rebuilt.npz

The .npz files hold the weights by canonical name: float32, float16, or bfloat16 as uint16 with its bits.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

U32, U64, F32 = np.uint32, np.uint64, np.float32
Array = NDArray[Any]
Weights = dict[str, Array]
# noise.md, "Gaussian"
Q = (0xC000001B, 0x3F800149, 0xBF2A8369, 0x3EFEC92F, 0xBED2FBB6, 0x3EC18C5D, 0xBE7242CD)
C = (0x3F7FFFFF, 0xBEFFFFE0, 0x3D2AA76F, 0xBAB59551, 0x37C23AB1)
S = (0x3F7FFFF3, 0xBE2AA816, 0x3C083456, 0xB9423DF1)
ROUNDING = 0xFFFFFFFF


# journal.md, "Frame": the CRCs are one chain
def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, payload) of every whole frame; the last one may be incomplete."""
    if data[:20] != b"\x89blockzo journal\r\n\x1a\n" or data[20:22] != b"\x01\x00":
        raise ValueError("this is no journal of version 1")
    crc, at = zlib.crc32(data[:22]), 22
    while at + 8 <= len(data):
        length, check = struct.unpack_from("<II", data, at)
        body, end = data[at + 8 : at + 8 + length], at + 12 + length
        crc = zlib.crc32(data[at : at + 4], crc)
        if end > len(data):
            return
        after = zlib.crc32(body, crc)
        if check != crc or struct.unpack_from("<I", data, end - 4) != (after,):
            raise ValueError(f"the frame at byte {at} is damaged")
        yield body[0], body[1:]
        crc, at = after, end


# journal.md, "Kinds", 1
def step_of(payload: bytes) -> tuple[int, bool, list[tuple[str, float, Array, Array]]]:
    """Seed, whether rounding is stochastic, and for each block distribution, decay, directions and coefficients."""
    flags, count, _, seed, losses = struct.unpack_from("<BHIQI", payload)
    at = struct.calcsize("<BHIQI") + 4 * losses
    blocks = []
    for _ in range(count):
        k, _, _, decay = struct.unpack_from("<Iddd", payload, at)
        at += struct.calcsize("<Iddd")
        gaussian = bool(flags & 2)
        if flags & 8:
            gaussian, at = payload[at] == 1, at + 1
        directions = np.arange(k, dtype=U32)
        if not flags & 4:
            directions, at = np.frombuffer(payload, "<u4", k, at), at + 4 * k
        blocks.append(
            ("gaussian" if gaussian else "rademacher", decay, directions, np.frombuffer(payload, "<f4", k, at))
        )
        at += 4 * k
    return seed, bool(flags & 1), blocks


# noise.md, 2
def philox(block: Array, seed: int, stream: int, direction: int) -> Array:
    """uint32 [blocks, 4]."""
    low = U64(0xFFFFFFFF)
    x0, x1 = block & low, block >> U64(32)
    x2, x3 = np.full_like(block, stream), np.full_like(block, direction)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = x0 * U64(0xD2511F53), x2 * U64(0xCD9E8D57)
        x0, x1, x2, x3 = (p1 >> U64(32)) ^ x1 ^ U64(k0), p1 & low, (p0 >> U64(32)) ^ x3 ^ U64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=1).astype(U32)


def number(bits: int) -> Any:
    return np.array(bits, dtype=U32).view(F32)[()]


def horner(x: Array, bits: tuple[int, ...]) -> Array:
    value = np.full_like(x, number(bits[-1]))
    for each in reversed(bits[:-1]):
        value = value * x
        value = value + number(each)
    return value


# noise.md, 3 and 4
def noise(count: int, seed: int, distribution: str, stream: int, direction: int) -> Array:
    """z[0], ..., z[count - 1]."""
    width = 128 if distribution == "rademacher" else 8
    words = philox(np.arange(-(-count // width), dtype=U64), seed, stream, direction).reshape(-1)
    if distribution == "rademacher":
        bits = (words[:, None] >> np.arange(32, dtype=U32)) & U32(1)
        return np.where(bits, F32(-1), F32(1)).reshape(-1)[:count]
    y = (U32(2) * (words & U32(0xFFFF)) + U32(1)).astype(F32)
    b = y.view(np.int32)
    e = (b - np.int32(0x3F3504F3)) >> np.int32(23)
    t = (b - (e << np.int32(23))).view(F32) - F32(1)
    radius = np.sqrt((np.int32(17) - e).astype(F32) * number(0x3FB17218) + t * horner(t, Q))
    half = ((words >> U32(16)) & U32(0x7FFF)).astype(np.int32)
    g = (np.int32(2) * half - np.int32(32767)).astype(F32) * number(0x38490FDB)
    u = g * g
    pair = np.stack([radius * horner(u, C), radius * (g * horner(u, S))], axis=1)
    return (pair.view(U32) ^ (words & U32(0x80000000))[:, None]).view(F32).reshape(-1)[:count]


def widened(stored: Array) -> Array:
    return (stored.astype(U32) << U32(16)).view(F32) if stored.dtype == np.uint16 else stored.astype(F32)


def rounded(value: Array, dtype: Any) -> Array:
    if dtype != np.uint16:
        return value.astype(dtype)
    bits = value.view(U32)
    nearest = (bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)
    return np.where(np.isnan(value), U32(0x7FC0), nearest).astype(np.uint16)


# noise.md, 6
def rounded_stochastically(value: Array, dtype: Any, seed: int, stream: int) -> Array:
    words = philox(np.arange(-(-len(value) // 8), dtype=U64), seed, stream, ROUNDING).reshape(-1)
    n = np.stack([words & U32(0xFFFF), words >> U32(16)], axis=1).reshape(-1)[: len(value)]
    bits = value.view(U32)
    if dtype == np.uint16:
        moved = ((bits + n) & U32(0xFFFF0000)).view(F32)
    else:
        large = ((bits + (n >> U32(3))) & U32(0xFFFFE000)).view(F32)
        ticks = np.floor(np.abs(value) * F32(2**24) + n.astype(F32) * F32(2**-16))
        moved = np.where(np.abs(value) >= F32(2**-14), large, np.copysign(ticks * F32(2**-24), value))
    return rounded(np.where(np.isfinite(value), moved, value), dtype)


# noise.md, 5, "update"
def replay(weights: Weights, data: bytes) -> Weights:
    """The weights after all steps of a journal's bytes; what is in no block stays."""
    found = frames(data)
    kind, payload = next(found)
    header = json.loads(zlib.decompress(payload))
    if kind != 0 or header["contract"] != "blockzo noise v1":
        raise ValueError("the first frame is no header of noise contract 1")
    flat = {name: weights[name].reshape(-1) for name in header["layout"]}
    for kind, payload in found:
        if kind != 1:
            continue
        seed, stochastic, blocks = step_of(payload)
        for name, block in header["layout"].items():
            distribution, decay, directions, coefficients = blocks[block]
            if not len(directions) and not decay:
                continue
            w, stream = flat[name], zlib.crc32(name.encode())
            total = np.zeros(len(w), dtype=F32)
            for direction, c in zip(directions, coefficients, strict=True):
                total = total + c * noise(len(w), seed, distribution, stream, int(direction))
            factor, value = F32(1.0 - decay), widened(w)
            value = (value if factor == 1 else value * factor) - total
            if stochastic and w.dtype != F32:
                flat[name] = rounded_stochastically(value, w.dtype, seed, stream)
            else:
                flat[name] = rounded(value, w.dtype)
    return {name: flat[name].reshape(w.shape) if name in flat else w for name, w in weights.items()}


if __name__ == "__main__":
    base, journal, out = sys.argv[1:]
    np.savez(out, **replay(dict(np.load(base)), Path(journal).read_bytes()))
