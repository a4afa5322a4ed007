"""Messages as bytes (docs/federated.md).

message = u8 kind, u8 protocol, 8 bytes run tag, payload, u32 CRC-32 of all before it          little-endian throughout
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

from blockzo.federated.protocol.examples import widths, wrong_counts
from blockzo.federated.protocol.messages.forms import (
    Accepted,
    CatchUp,
    Hello,
    Message,
    MessageError,
    Records,
    Refused,
    Reply,
    Scores,
    SumMessage,
    Task,
    Welcome,
)
from blockzo.federated.protocol.records import pack_signs, unpack_signs
from blockzo.federated.protocol.settings import PROTOCOL, RunSettings
from blockzo.federated.protocol.sum_messages import CIPHER, COMMITMENT, NONCE, SESSION
from blockzo.journal.outside import MOST_MESSAGE, build, read_json, write_json
from blockzo.journal.record import pack_floats, unpack_floats

HELLO, WELCOME, STEP, EVALUATE, REPLY, SCORES, CATCH_UP, RECORDS, ACCEPTED, REFUSED, SUM = range(1, 12)
ASKING = (HELLO, CATCH_UP)
"""Kinds of a client's messages that are answered with much."""
NO_TAG = bytes(8)
OVERHEAD = 14
DIGEST_PREFIX = "bz1-"

_STEP = struct.Struct("<IIHBI")
_REPLY = struct.Struct("<IIfB")
_SCORES = struct.Struct("<IIff")
_WANTS_DIGEST, _IN_SUM, _HAS_DIGEST, _HAS_SLOT, _LAST = 1, 2, 1, 2, 1


def reply_bytes(settings: RunSettings) -> int:
    """Largest size of a reply."""
    if settings.planned:
        return OVERHEAD + _REPLY.size + 32 + 4 + 4 * (2 * max(settings.directions) + 1)
    held = -(-settings.scalars // 8) if settings.combining.signs else 4 * settings.scalars
    return (
        OVERHEAD + _REPLY.size + held + 32 + 2 * settings.own_directions + 2 * settings.local_steps * settings.counted
    )


def sum_bytes(settings: RunSettings, clients: int) -> int:
    """Largest size of what a client sends in a secure sum of so many."""
    shares = COMMITMENT + (2 * COMMITMENT + CIPHER) * clients
    return OVERHEAD + 1 + 32 + 1 + SESSION + max(shares, 8 * (2 + settings.scalars))


def tag_of(data: bytes) -> bytes:
    """Of the run that a message belongs to."""
    return data[2:10]


def encode(message: Message, tag: bytes = NO_TAG, settings: RunSettings | None = None) -> bytes:
    """`settings` are needed for a reply."""
    kind, payload = _payload(message, settings)
    head = bytes((kind, PROTOCOL)) + tag + payload
    return head + struct.pack("<I", zlib.crc32(head))


def _payload(message: Message, settings: RunSettings | None) -> tuple[int, bytes]:
    match message:
        case Hello():
            return HELLO, write_json(vars(message), "a hello")
        case Welcome():
            return WELCOME, write_json(vars(message), "a welcome")
        case Refused():
            return REFUSED, write_json(vars(message), "a refusal")
        case Task():
            flags = _WANTS_DIGEST * message.wants_digest | _IN_SUM * bool(message.nonce)
            head = _STEP.pack(message.number, message.first, message.slot, flags, len(message.records))
            if message.nonce:
                head += struct.pack("<I", message.attempt) + message.nonce
            return EVALUATE if message.evaluate else STEP, head + message.records
        case Reply():
            assert settings is not None
            flags = _HAS_DIGEST * (message.digest is not None) | _HAS_SLOT * settings.own_directions
            parts = [_REPLY.pack(message.number, message.examples, message.loss, flags)]
            if settings.own_directions:
                parts.append(struct.pack("<H", message.slot))
            if message.digest is not None:
                parts.append(bytes.fromhex(message.digest.removeprefix(DIGEST_PREFIX)))
            parts.append(struct.pack(f"<{len(message.counts)}H", *message.counts))
            if settings.planned:
                parts.append(struct.pack("<I", message.plan))
            if settings.combining.signs:
                parts.append(pack_signs(list(message.scalars)))
            else:
                parts.append(pack_floats(message.scalars))
            return REPLY, b"".join(parts)
        case SumMessage():
            if message.digest is None:
                return SUM, b"\0" + message.body
            return SUM, b"\1" + bytes.fromhex(message.digest.removeprefix(DIGEST_PREFIX)) + message.body
        case Scores():
            return SCORES, _SCORES.pack(message.number, message.examples, message.loss, message.accuracy)
        case CatchUp():
            return CATCH_UP, struct.pack("<I", message.position)
        case Records():
            text = b"" if message.snapshot is None else write_json(message.snapshot, "a snapshot", MOST_MESSAGE)
            head = struct.pack("<IIBI", message.first, message.count, _LAST * message.last, len(text))
            return RECORDS, head + text + message.records
        case Accepted():
            return ACCEPTED, struct.pack("<I", message.number)


def kind_of(data: bytes) -> int:
    """Kind of a message, unchecked; 0 where there is none."""
    return data[0] if data else 0


def decode(data: bytes, tag: bytes | None = None, settings: RunSettings | None = None) -> Message:
    """The message in `data`.

    Args:
        tag: of the run; messages other than hello, welcome and refusals must bear it.
        settings: of the run; without them no reply can be read.

    Raises:
        MessageError: `data` is anything else.
    """
    if not OVERHEAD <= len(data) <= MOST_MESSAGE:
        raise MessageError(f"{len(data)} bytes are no message; expected {OVERHEAD} to {MOST_MESSAGE}")
    (crc,) = struct.unpack("<I", data[-4:])
    if zlib.crc32(memoryview(data)[:-4]) != crc:
        raise MessageError("the checksum is wrong: the message was damaged on its way")
    kind, protocol, found, payload = data[0], data[1], data[2:10], data[10:-4]
    if protocol != PROTOCOL:
        raise MessageError(
            f"protocol {protocol} was found, expected {PROTOCOL}; install the same version of blockzo everywhere"
        )
    try:
        if kind in _FORMS:
            what, form = _FORMS[kind]
            message: Message = build(form, read_json(payload, what, 1 << 20), what)
            return message
        if tag is None or found != tag:
            raise MessageError("the message belongs to another run: contract, base model, blocks or settings differ")
        return _from_bytes(kind, payload, settings)
    except struct.error as error:
        raise MessageError(f"the message is shorter than its counts say ({error})") from None
    except MessageError:
        raise
    except ValueError as error:
        raise MessageError(f"the message does not make sense ({error})") from None


def _from_bytes(kind: int, payload: bytes, settings: RunSettings | None) -> Message:
    if kind in (STEP, EVALUATE):
        number, first, slot, flags, size = _STEP.unpack_from(payload)
        at, attempt, nonce = _STEP.size, 0, b""
        if flags & _IN_SUM:
            (attempt,), nonce = struct.unpack_from("<I", payload, at), payload[at + 4 : at + 4 + NONCE]
            at += 4 + NONCE
        records = payload[at:]
        if size != len(payload) - at or flags & ~(_WANTS_DIGEST | _IN_SUM) or first > number:
            raise MessageError(f"a task for round {number} has {len(records)} bytes of records from {first} on")
        return Task(number, first, records, slot, bool(flags & _WANTS_DIGEST), kind == EVALUATE, attempt, nonce)
    if kind == REPLY and settings is not None:
        return _reply(payload, settings)
    if kind == SUM:
        return _sum_message(payload)
    if kind == SCORES:
        number, examples, loss, accuracy = _SCORES.unpack(payload)
        if not (math.isfinite(loss) and 0 <= accuracy <= 1) or not examples:
            raise MessageError(f"scores are loss {loss}, accuracy {accuracy} of {examples} rows; expected finite ones")
        return Scores(number, examples, loss, accuracy)
    if kind == CATCH_UP:
        return CatchUp(*struct.unpack("<I", payload))
    if kind == RECORDS:
        first, count, flags, size = struct.unpack_from("<IIBI", payload)
        text, records = payload[13 : 13 + size], payload[13 + size :]
        if flags & ~_LAST or len(text) != size:
            raise MessageError("records whose head does not fit them")
        snapshot = read_json(text, "a snapshot", MOST_MESSAGE) if size else None
        if snapshot is not None and not isinstance(snapshot, dict):
            raise MessageError("a snapshot that is not a JSON object")
        return Records(first, count, records, bool(flags & _LAST), snapshot)
    if kind == ACCEPTED:
        return Accepted(*struct.unpack("<I", payload))
    raise MessageError(f"the kind of message {kind} is not known here")


def _reply(payload: bytes, settings: RunSettings) -> Reply:
    number, examples, loss, flags = _REPLY.unpack_from(payload)
    at, slot, digest = _REPLY.size, 0, None
    if flags & ~(_HAS_DIGEST | _HAS_SLOT) or bool(flags & _HAS_SLOT) != settings.own_directions:
        raise MessageError(f"a reply has the flags {flags}, which do not belong to this run")
    if flags & _HAS_SLOT:
        (slot,) = struct.unpack_from("<H", payload, at)
        at += 2
    if flags & _HAS_DIGEST:
        if len(payload) < at + 32:
            raise MessageError("a reply is too short for its digest")
        digest = DIGEST_PREFIX + payload[at : at + 32].hex()
        at += 32
    counts: tuple[int, ...] = ()
    if settings.counted:
        counts = struct.unpack_from(f"<{settings.local_steps}H", payload, at)
        at += 2 * settings.local_steps
        wrong = wrong_counts(settings, counts)
        if wrong is not None:
            raise MessageError(f"a reply has {wrong}")
    count, plan = sum(widths(settings, counts)), 0
    if settings.planned:
        (plan,) = struct.unpack_from("<I", payload, at)
        at += 4
        # how many the plan says the server knows
        count = min(max(0, len(payload) - at) // 4, 2 * max(settings.directions) + 1)
    if settings.combining.signs:
        signs, at = unpack_signs(payload, at, count)
        scalars = tuple(signs)
    else:
        if len(payload) - at != 4 * count:
            raise MessageError(f"a reply has {len(payload) - at} bytes of scalars; expected {4 * count}")
        scalars = unpack_floats(payload, count, at)
        at = len(payload)
    if at != len(payload):
        raise MessageError(f"a reply has {len(payload) - at} bytes after its end")
    return Reply(number, examples, loss, scalars, digest, slot, counts, plan)


def _sum_message(payload: bytes) -> SumMessage:
    at = 1 + 32 * (payload[:1] == b"\1")
    if payload[:1] not in (b"\0", b"\1") or len(payload) <= at + SESSION:
        raise MessageError(f"{len(payload)} bytes are no message of a secure sum")
    return SumMessage(payload[at:], DIGEST_PREFIX + payload[1:at].hex() if at > 1 else None)


_FORMS: dict[int, tuple[str, Any]] = {
    HELLO: ("a hello", Hello),
    WELCOME: ("a welcome", Welcome),
    REFUSED: ("a refusal", Refused),
}
