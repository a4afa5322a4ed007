"""Bytes of a journal, as docs/journal.md defines them. Little-endian throughout; nothing here touches a file.

file   = magic, u16 version, frame(header), frame*
frame  = u32 length, u32 crc of the length, body, u32 crc of the body        both CRC-32s go on from the one before
body   = u8 kind, payload
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockzo.contract import CONTRACT, DISTRIBUTIONS
from blockzo.record import BlockUpdate, Record

MAGIC = b"\x89blockzo journal\r\n\x1a\n"
VERSION = 1
HEADER, STEP, DIGEST, FINISH, PLAN = 0, 1, 2, 3, 4
MAX_BODY = 1 << 26
MAX_HEADER = 1 << 28

_STOCHASTIC, _GAUSSIAN, _IN_ORDER, _MIXED = 1, 2, 4, 8
_LENGTH = struct.Struct("<II")
_STEP = struct.Struct("<BHIQI")
_BLOCK = struct.Struct("<Iddd")


class JournalError(ValueError):
    """A journal cannot be read, written or applied; the text says what was found and what to do."""


@dataclass(frozen=True)
class Parsed:
    """Frames after the header; `end` and `chain` are where the next frame goes on; `torn` bytes follow it."""

    frames: list[tuple[int, bytes]]
    end: int
    chain: int
    torn: int


def encode_frame(kind: int, payload: bytes, chain: int) -> tuple[bytes, int]:
    body = bytes((kind,)) + payload
    if len(body) > MAX_BODY:
        raise JournalError(f"a record of {len(body)} bytes is too large; expected at most {MAX_BODY}")
    length = struct.pack("<I", len(body))
    chain = zlib.crc32(length, chain)
    head = length + struct.pack("<I", chain)
    chain = zlib.crc32(body, chain)
    return head + body + struct.pack("<I", chain), chain


def encode_header(header: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise JournalError(f"metadata cannot be written as JSON: {error}") from error
    start = MAGIC + struct.pack("<H", VERSION)
    frame, _ = encode_frame(HEADER, zlib.compress(text, 9), zlib.crc32(start))
    return start + frame


def parse(data: bytes) -> tuple[dict[str, Any], Parsed]:
    """Splits a file into its header and frames.

    Raises:
        JournalError: anything but a valid journal whose last frame may be torn.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise JournalError("this is not a blockzo journal (its first bytes are wrong)")
    start = len(MAGIC) + 2
    if len(data) < start:
        raise JournalError("the file ends inside its header; there is nothing to resume: delete it and start again")
    (version,) = struct.unpack_from("<H", data, len(MAGIC))
    if version != VERSION:
        raise JournalError(f"the journal has version {version}; this blockzo reads version {VERSION}")
    first, end, chain = _frame(data, start, zlib.crc32(data[:start]))
    if first is None:
        raise JournalError("the file ends inside its header; there is nothing to resume: delete it and start again")
    header = _decode_header(first)
    frames: list[tuple[int, bytes]] = []
    while end < len(data):
        body, end, chain = _frame(data, end, chain)
        if body is None:
            break
        frames.append((body[0], body[1:]))
    return header, Parsed(frames, end, chain, len(data) - end)


def _frame(data: bytes, at: int, chain: int) -> tuple[bytes | None, int, int]:
    """The body of the frame at `at`, or None where the file ends inside it; then where the next begins, and the chain."""
    torn = (None, at, chain)
    rest = memoryview(data)[at:]  # a copy of the rest for every frame would make reading quadratic
    if len(rest) < _LENGTH.size or not any(rest):
        return torn
    length, check = _LENGTH.unpack_from(rest)
    new = zlib.crc32(rest[:4], chain)
    if new != check or not 1 <= length <= MAX_BODY:
        raise JournalError(
            f"damaged at byte {at}: the length of a record fails its check; restore the file from a copy"
        )
    stop = _LENGTH.size + length
    if len(rest) < stop + 4:
        return torn
    body = bytes(rest[_LENGTH.size : stop])
    new = zlib.crc32(body, new)
    if struct.unpack_from("<I", rest, stop)[0] != new:
        raise JournalError(f"damaged at byte {at}: a record fails its check; restore the file from a copy")
    return body, at + stop + 4, new


def _decode_header(body: bytes) -> dict[str, Any]:
    inflate = zlib.decompressobj()
    try:
        header = json.loads(inflate.decompress(body[1:], MAX_HEADER))
    except (zlib.error, ValueError) as error:
        raise JournalError(f"the header cannot be read ({error})") from error
    if body[0] != HEADER or not isinstance(header, dict):
        raise JournalError("the header is not one")
    if header.get("contract") != CONTRACT:
        raise JournalError(f"the noise contract is {header.get('contract')!r}; this blockzo makes {CONTRACT!r}")
    layout, digest = header.get("layout"), header.get("base_digest")
    good = (
        isinstance(layout, dict)
        and all(isinstance(v, int) for v in layout.values())
        and (digest is None or isinstance(digest, str))
        and isinstance(header.get("metadata"), dict)
        and isinstance(header.get("exact"), bool)
        and isinstance(header.get("start", 0), int)
        and header.get("start", 0) >= 0
    )
    if not good:
        raise JournalError("the header lacks layout, metadata, exact or base_digest")
    return header


def encode_record(record: Record) -> bytes:
    flags = _STOCHASTIC * record.stochastic_rounding | _GAUSSIAN * (record.distribution == "gaussian")
    in_order = all(block.directions == tuple(range(len(block.directions))) for block in record.blocks)
    mixed = any(block.distribution not in (None, record.distribution) for block in record.blocks)
    flags |= _IN_ORDER * in_order | _MIXED * mixed
    parts = [_STEP.pack(flags, len(record.blocks), record.step, record.seed, len(record.losses))]
    parts.append(struct.pack(f"<{len(record.losses)}f", *record.losses))
    for block in record.blocks:
        count = len(block.directions)
        parts.append(_BLOCK.pack(count, block.lr, block.eps, block.decay))
        if mixed:
            parts.append(bytes((DISTRIBUTIONS.index(block.distribution or record.distribution),)))
        if not in_order:
            parts.append(struct.pack(f"<{count}I", *block.directions))
        parts.append(struct.pack(f"<{count}f", *block.coefficients))
    return b"".join(parts)


def decode_record(payload: bytes) -> Record:
    try:
        flags, blocks, step, seed, count = _STEP.unpack_from(payload)
        at = _STEP.size
        losses = struct.unpack_from(f"<{count}f", payload, at)
        at += 4 * count
        updates = []
        for _ in range(blocks):
            number, lr, eps, decay = _BLOCK.unpack_from(payload, at)
            at += _BLOCK.size
            distribution = None
            if flags & _MIXED:
                (code,) = struct.unpack_from("<B", payload, at)
                at += 1
                if code >= len(DISTRIBUTIONS):
                    raise JournalError(
                        f"a block has the unknown distribution {code}; it was written by a newer blockzo"
                    )
                distribution = DISTRIBUTIONS[code]
            directions = tuple(range(number)) if flags & _IN_ORDER and 4 * number <= len(payload) else ()
            if not flags & _IN_ORDER:
                directions = struct.unpack_from(f"<{number}I", payload, at)
                at += 4 * number
            coefficients = struct.unpack_from(f"<{number}f", payload, at)
            at += 4 * number
            updates.append(BlockUpdate(directions, coefficients, lr, eps, decay, distribution))
    except struct.error as error:
        raise JournalError(f"a record is shorter than its counts say ({error})") from error
    if at != len(payload) or flags & ~(_STOCHASTIC | _GAUSSIAN | _IN_ORDER | _MIXED):
        raise JournalError("a record has bytes or flags that this blockzo does not know")
    default = DISTRIBUTIONS[bool(flags & _GAUSSIAN)]
    return Record(step, seed, default, tuple(updates), losses, stochastic_rounding=bool(flags & _STOCHASTIC))


def encode_digest(step: int, digest: str) -> bytes:
    return struct.pack("<I", step & 0xFFFFFFFF) + digest.encode("ascii")


def decode_digest(payload: bytes) -> tuple[int, str]:
    if len(payload) < 5:
        raise JournalError("a digest record is too short")
    return struct.unpack_from("<I", payload)[0], payload[4:].decode("ascii")


def encode_plan(plan: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(plan), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8")


def decode_plan(payload: bytes) -> dict[str, Any]:
    try:
        plan = json.loads(payload)
    except ValueError as error:
        raise JournalError(f"a plan cannot be read ({error})") from error
    costs = plan.get("costs") if isinstance(plan, dict) else None
    if not isinstance(costs, list) or not all(isinstance(c, (int, float)) and 0 < c < math.inf for c in costs):
        raise JournalError("a plan lacks its costs, a positive number for each block")
    return plan
