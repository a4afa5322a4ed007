"""Bytes of a secure sum, little-endian: u8 kind, 16 bytes session, then what secure_sum.py says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

ADVERTISE, ROSTER, SHARES, DELIVERY, MASKED, SURVIVORS, UNMASK = range(1, 8)
KEY, COMMITMENT, SESSION, NONCE = 32, 16, 16, 16
CIPHER = 2 * 33 + 16
"""Two shares and the tag of the cipher."""
MOST_CLIENTS = 1024


class SumError(ValueError):
    """A message or a state that a secure sum cannot go on with; the text says what was found.

    Attributes: `client`, whose fault it is, where that is known.
    """

    client: str | None = None


class StaleSum(SumError):
    """A message of another sum, or of a phase that is over."""


@dataclass(frozen=True)
class Keys:
    """Public keys of one client for one round: `channel` for shares between clients, `mask` for masks."""

    channel: bytes
    mask: bytes


def session_of(tag: bytes, number: int, attempt: int = 0, nonce: bytes = b"") -> bytes:
    """Names one attempt at the sum of one round of one run.

    Args:
        nonce: random bytes of the server, new with every attempt: one that is started again counts attempts from 0.
    """
    address = tag + number.to_bytes(8, "little") + attempt.to_bytes(4, "little") + nonce
    return hashlib.blake2s(address, digest_size=SESSION, person=b"bz-sum").digest()


def commitment(what: bytes, session: bytes, dealer: int, holder: int) -> bytes:
    """Of a share (or, with holder 0, of a self mask's seed): 256 random bits under it, so that it hides them."""
    state = hashlib.blake2s(what, key=session, digest_size=COMMITMENT, person=b"bz-share")
    state.update(dealer.to_bytes(4, "little") + holder.to_bytes(4, "little"))
    return state.digest()


def pack(kind: int, session: bytes, *parts: bytes) -> bytes:
    return bytes((kind,)) + session + b"".join(parts)


def unpack(data: bytes, kind: int, session: bytes) -> bytes:
    """The payload of a message of this kind and session."""
    if len(data) < 1 + SESSION or data[0] != kind or data[1 : 1 + SESSION] != session:
        raise SumError(f"{len(data)} bytes are no message of kind {kind} of this round's sum")
    return data[1 + SESSION :]


def pieces(payload: bytes, size: int, count: int | None = None) -> list[bytes]:
    """The payload in pieces of equal size; `count` of them where it is given."""
    if len(payload) % size or (count is not None and len(payload) != size * count):
        raise SumError(f"a payload of {len(payload)} bytes; expected {'pieces' if count is None else count} of {size}")
    return [payload[at : at + size] for at in range(0, len(payload), size)]


def pack_members(members: Sequence[int]) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in members)


def unpack_members(payload: bytes, clients: int) -> list[int]:
    """Numbers of clients, ascending, each from 1 to `clients`."""
    found = [int.from_bytes(piece, "little") for piece in pieces(payload, 4)]
    if found != sorted(set(found)) or (found and not 1 <= found[0] <= found[-1] <= clients):
        raise SumError(f"{len(found)} numbers of clients; expected different ones from 1 to {clients}, ascending")
    return found
