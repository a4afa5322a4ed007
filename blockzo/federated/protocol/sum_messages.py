"""Bytes of a secure sum, little-endian: u8 kind, 16 bytes session, then what secure_sum.py says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from blockzo.federated.signing import PUBLIC, SIGNATURE
from blockzo.federated.sums import SumError

ADVERTISE, ROSTER, SHARES, DELIVERY, MASKED, SURVIVORS, UNMASK = range(0x21, 0x28)
"""The second form. The first, 1 to 7, had neither signatures nor masks that are bound to the roster."""
KEY, COMMITMENT, SESSION, NONCE = 32, 16, 16, 16
CIPHER = 2 * 33 + 16
"""Two shares and the tag of the cipher."""


class StaleSum(SumError):
    """A message of another sum, or of a phase that is over."""


@dataclass(frozen=True)
class Keys:
    """Public keys of one client for one round: `channel` for shares between clients, `mask` for masks.

    In a signed sum `public` is the client's long-term key, `signature` that of `statement`; else both are empty.
    """

    channel: bytes
    mask: bytes
    public: bytes = b""
    signature: bytes = b""

    def pack(self) -> bytes:
        return self.channel + self.mask + self.public + self.signature

    @classmethod
    def unpack(cls, data: bytes) -> Keys:
        """From the bytes of `pack`, of a signed sum where there are as many."""
        return cls(data[:KEY], data[KEY : 2 * KEY], data[2 * KEY : 2 * KEY + PUBLIC], data[2 * KEY + PUBLIC :])

    @staticmethod
    def size(signed: bool) -> int:
        return 2 * KEY + (PUBLIC + SIGNATURE) * signed

    def statement(self, address: bytes, session: bytes) -> bytes:
        """What a client signs: these keys are its own, in this phase of this attempt at this round of this run, and no other."""
        return (
            b"blockzo secure sum 2\0" + address + session + bytes((ADVERTISE,)) + self.public + self.channel + self.mask
        )


def address_of(tag: bytes, number: int, attempt: int) -> bytes:
    """Run, round and attempt."""
    return tag + number.to_bytes(8, "little") + attempt.to_bytes(4, "little")


def bound(session: bytes, roster: bytes) -> bytes:
    """Session and roster as one: clients that were given different rosters share no masks and read nothing of one another."""
    return hashlib.blake2s(roster, key=session, digest_size=SESSION, person=b"bz-rost").digest()


def check_form(kind: int) -> None:
    """Raises SumError for a message of the first form."""
    if 1 <= kind <= 7:
        raise SumError(
            f"message {kind} is of the first form of secure sums, which nobody signs; install the same version of blockzo "
            "everywhere"
        )


def session_of(tag: bytes, number: int, attempt: int = 0, nonce: bytes = b"") -> bytes:
    """Names one attempt at the sum of one round of one run.

    Args:
        nonce: random bytes of the server, new with every attempt: one that is started again counts attempts from 0.
    """
    return hashlib.blake2s(address_of(tag, number, attempt) + nonce, digest_size=SESSION, person=b"bz-sum").digest()


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
