"""Bytes of a journal, as docs/journal.md defines them. Little-endian throughout; nothing here touches a file.

file   = magic, u16 version, frame(header), frame*
frame  = u32 length, u32 crc of the length, body, u32 crc of the body        both CRC-32s go on from the one before
body   = u8 kind, payload
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from msgspec import Meta

from blockzo.contract import CONTRACT, DISTRIBUTIONS, MAX_RANK
from blockzo.journal.outside import (
    MOST_JSON,
    MOST_SCALARS,
    Position,
    Refusal,
    Word,
    build,
    inflated,
    read_json,
    shown,
    write_json,
)
from blockzo.journal.record import BlockUpdate, Record, pack_floats, unpack_floats

MAGIC = b"\x89blockzo journal\r\n\x1a\n"
VERSION = 1
HEADER, STEP, DIGEST, FINISH, PLAN = 0, 1, 2, 3, 4
MAX_BODY = 1 << 26
START = len(MAGIC) + 2
"""Bytes before the first frame."""
HEAD = struct.Struct("<II")
"""Of a frame: length, its check."""

_STOCHASTIC, _GAUSSIAN, _IN_ORDER, _MIXED, _RANK = 1, 2, 4, 8, 16
_STEP = struct.Struct("<BHIQI")
_BLOCK = struct.Struct("<Iddd")


class JournalError(Refusal):
    """A journal cannot be read, written or applied; the text says what was found and what to do."""


@dataclass(frozen=True)
class Header:
    """What the first frame says, once it has been checked."""

    layout: dict[Annotated[str, Meta(max_length=4096)], Annotated[int, Meta(ge=0, le=65535)]]
    metadata: dict[str, Any]
    exact: bool
    base_digest: Word | None
    start: Position = 0


@dataclass(frozen=True)
class Plan:
    """`costs`: of each block, in any unit."""

    costs: Annotated[tuple[Annotated[float, Meta(gt=0, le=1e300)], ...], Meta(min_length=1, max_length=65535)]


def encode_frame(kind: int, payload: bytes, chain: int) -> tuple[bytes, int]:
    body = bytes((kind,)) + payload
    if len(body) > MAX_BODY:
        raise JournalError(f"a record of {len(body)} bytes is too large; expected at most {MAX_BODY}")
    length = struct.pack("<I", len(body))
    chain = zlib.crc32(length, chain)
    head = length + struct.pack("<I", chain)
    chain = zlib.crc32(body, chain)
    return head + body + struct.pack("<I", chain), chain


def encode_header(header: Mapping[str, Any]) -> bytes:
    """The bytes that a file begins with, its first frame included."""
    try:
        text = write_json(header, "the header (layout and metadata)")
    except Refusal as error:
        raise JournalError(error) from error
    start = MAGIC + struct.pack("<H", VERSION)
    frame, _ = encode_frame(HEADER, zlib.compress(text, 9), zlib.crc32(start))
    return start + frame


def check_start(data: bytes) -> int:
    """Checks the bytes before the first frame.

    Returns:
        The CRC that the first frame goes on from.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise JournalError("this is not a blockzo journal (its first bytes are wrong)")
    if len(data) < START:
        raise JournalError("the file ends inside its header; there is nothing to resume: delete it and start again")
    (version,) = struct.unpack_from("<H", data, len(MAGIC))
    if version != VERSION:
        raise JournalError(f"the journal has version {version}; this blockzo reads version {VERSION}")
    return zlib.crc32(data[:START])


def decode_header(kind: int, payload: bytes) -> Header:
    if kind != HEADER:
        raise JournalError("the header is not one")
    try:
        if len(payload) > MOST_JSON:
            raise Refusal(f"it has {len(payload)} bytes; expected at most {MOST_JSON}")
        values = read_json(inflated(payload, "it"), "it")
        found = values.get("contract") if isinstance(values, dict) else None
        if found != CONTRACT:
            raise JournalError(f"the noise contract is {shown(found)}; this blockzo makes {CONTRACT!r}")
        return build(Header, values, "it", exact=False)
    except JournalError:
        raise
    except Refusal as error:
        raise JournalError(f"the header cannot be read: {error}") from None


def encode_record(record: Record) -> bytes:
    flags = _STOCHASTIC * record.stochastic_rounding | _GAUSSIAN * (record.distribution == "gaussian")
    in_order = all(block.directions == tuple(range(len(block.directions))) for block in record.blocks)
    mixed = any(block.distribution not in (None, record.distribution) for block in record.blocks)
    flags |= _IN_ORDER * in_order | _MIXED * mixed | _RANK * (record.rank is not None)
    parts = [_STEP.pack(flags, len(record.blocks), record.step, record.seed, len(record.losses))]
    parts.append(pack_floats(record.losses))
    for block in record.blocks:
        count = len(block.directions)
        parts.append(_BLOCK.pack(count, block.lr, block.eps, block.decay))
        if mixed:
            parts.append(bytes((DISTRIBUTIONS.index(block.distribution or record.distribution),)))
        if not in_order:
            parts.append(struct.pack(f"<{count}I", *block.directions))
        parts.append(pack_floats(block.coefficients))
    if record.rank is not None:
        # last, where readers that know no ranks find a byte too many
        parts.append(bytes((record.rank,)))
    return b"".join(parts)


def decode_record(payload: bytes) -> Record:
    try:
        flags, blocks, step, seed, count = _STEP.unpack_from(payload)
        at = _STEP.size
        _bounded(count)
        losses = unpack_floats(payload, count, at)
        at += 4 * count
        updates = []
        for _ in range(blocks):
            number, lr, eps, decay = _BLOCK.unpack_from(payload, at)
            at += _BLOCK.size
            _bounded(number)
            distribution = None
            if flags & _MIXED:
                (code,) = struct.unpack_from("<B", payload, at)
                at += 1
                if code >= len(DISTRIBUTIONS):
                    raise JournalError(
                        f"a block has the unknown distribution {code}; it was written by a newer blockzo"
                    )
                distribution = DISTRIBUTIONS[code]
            directions: tuple[int, ...] = ()
            if not flags & _IN_ORDER:
                directions = struct.unpack_from(f"<{number}I", payload, at)
                at += 4 * number
            coefficients = unpack_floats(payload, number, at)
            at += 4 * number
            if flags & _IN_ORDER:
                directions = tuple(range(number))
            updates.append(BlockUpdate(directions, coefficients, lr, eps, decay, distribution))
        rank = None
        if flags & _RANK:
            (rank,) = struct.unpack_from("<B", payload, at)
            at += 1
            if not 1 <= rank <= MAX_RANK:
                raise JournalError(f"a record has rank {rank}; this blockzo knows 1 to {MAX_RANK}")
    except struct.error as error:
        raise JournalError(f"a record is shorter than its counts say ({error})") from error
    if at != len(payload) or flags & ~(_STOCHASTIC | _GAUSSIAN | _IN_ORDER | _MIXED | _RANK):
        raise JournalError("a record has bytes or flags that this blockzo does not know")
    default = DISTRIBUTIONS[bool(flags & _GAUSSIAN)]
    stochastic = bool(flags & _STOCHASTIC)
    return Record(step, seed, default, tuple(updates), losses, stochastic_rounding=stochastic, rank=rank)


def _bounded(count: int) -> None:
    if count > MOST_SCALARS:
        raise JournalError(f"a record has {count} losses or directions; expected at most {MOST_SCALARS}")


def encode_digest(step: int, digest: str) -> bytes:
    return struct.pack("<I", step & 0xFFFFFFFF) + digest.encode("ascii")


def decode_digest(payload: bytes) -> tuple[int, str]:
    if not 5 <= len(payload) <= 4 + 256:
        raise JournalError(f"a digest record has {len(payload)} bytes; expected 5 to 260")
    return struct.unpack_from("<I", payload)[0], payload[4:].decode("ascii")


def encode_plan(plan: Mapping[str, Any]) -> bytes:
    try:
        data = write_json(dict(plan), "a plan")
        decode_plan(data)
    except Refusal as error:
        raise JournalError(error) from error
    return data


def decode_plan(payload: bytes) -> dict[str, Any]:
    try:
        values = read_json(payload, "a plan")
        return {**values, **asdict(build(Plan, values, "a plan", exact=False))}
    except Refusal as error:
        raise JournalError(f"{error}; expected costs, a positive number for each block") from None
