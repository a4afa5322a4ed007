"""Sums that a server learns without learning what is added (Bonawitz et al., CCS 2017, "Practical Secure Aggregation").

Every client adds to its integers a mask of its own and one mask for every pair, which cancels in the sum, modulo 2^64. The seeds
of both are shared (Shamir) among the clients: of those who answered, the server is told the own mask, of those who vanished
after dealing their shares the pair masks, never both of one client. A client that was given up and still answers late stays
hidden by its own mask. Four messages a client and round, keys fresh in each:

    client  ADVERTISE  two public keys                server  ROSTER     all of them, in order: client i has number i from 1
    client  SHARES     sealed shares, commitments     server  DELIVERY   who dealt shares, and those for this client
    client  MASKED     masked integers                server  SURVIVORS  whose masked integers came
    client  UNMASK     one share for each dealer      server  the sum

Against a server that follows the protocol and looks at all it sees, with up to threshold - 1 clients helping it. In signed sums
keys bear signatures of long-term keys (signing.py), so that the server cannot invent clients (docs/privacy.md).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.sum_messages import Keys
from blockzo.federated.secagg import shamir
from blockzo.federated.secagg.crypto import agreed, need_cryptography, new_key, seal, stream, unseal
from blockzo.federated.secagg.fixed_point import to_words
from blockzo.federated.signing import Signer, fingerprint, verified
from blockzo.federated.sums import MOST_CLIENTS, SumError


def threshold_of(clients: int) -> int:
    """Shares that recover a mask: more than half of them, so that a mask and its opposite never both come together."""
    return clients // 2 + 1


def read_roster(payload: bytes, signed: bool = False) -> list[Keys]:
    """Keys of clients 1, 2, ... in order."""
    roster = [Keys.unpack(entry) for entry in s.pieces(payload, Keys.size(signed))]
    if not 2 <= len(roster) <= MOST_CLIENTS:
        raise SumError(f"{len(roster)} clients; a sum that hides its terms needs 2 to {MOST_CLIENTS}")
    return roster


class SumClient:
    """One client in the sum of one round: `advertise`, `share`, `mask`, `unmask`, each once and in this order.

    Args:
        session: `session_of(tag, round, attempt, nonce)`.
        length: integers in the sum.
        signer: in a signed sum: the own long-term key and whom this client knows.
        least: clients in a sum; with fewer this client goes no further. The signer's is used where it is larger.
        address: `address_of(tag, round, attempt)`, for signatures.

    Every method but `advertise` takes what the server sent and raises SumError where it will not go on; the client's integers
    are safe then, and it is out of this sum.

    Attributes: `stage`, how many of the four were called.
    """

    def __init__(
        self, session: bytes, length: int, signer: Signer | None = None, address: bytes = b"", least: int = 2
    ) -> None:
        need_cryptography()
        self._least = max(least, signer.least if signer is not None else 0)
        self.session, self.length, self._signer, self._address = session, length, signer, address
        self._bound = b""
        self._channel, self._mask_key, self._seed = new_key(), new_key(), os.urandom(shamir.SECRET_BYTES)
        self.keys = Keys(self._channel.public_key().public_bytes_raw(), self._mask_key.public_key().public_bytes_raw())
        if signer is not None:
            unsigned = replace(self.keys, public=signer.public)
            self.keys = replace(unsigned, signature=signer.sign(unsigned.statement(address, session)))
        self.stage = 0
        self._roster: list[Keys] = []
        self._number = self._threshold = 0
        self._dealers: list[int] = []
        self._held: dict[int, bytes] = {}
        """Dealer -> its two shares for this client."""

    def _at(self, stage: int) -> None:
        """A second answer with another list of names could give a mask and its opposite away."""
        if self.stage != stage:
            raise SumError(
                f"message {stage + 1} of a client was asked for, {self.stage} were given; each is given once"
            )
        self.stage += 1

    def advertise(self) -> bytes:
        self._at(0)
        return s.pack(s.ADVERTISE, self.session, self.keys.pack())

    def _vouch(self) -> None:
        """Refuses a roster with anyone whom this client does not know, or who did not sign for this sum."""
        signer = self._signer
        assert signer is not None
        for number, keys in enumerate(self._roster, 1):
            if keys.public not in signer.roster.names:
                raise SumError(
                    f"client {number} of the sum has the key {fingerprint(keys.public)}, which is not in this client's roster"
                )
            if not verified(keys.public, keys.signature, keys.statement(self._address, self.session)):
                raise SumError(
                    f"client {number} of the sum, {signer.roster.names[keys.public]!r}, did not sign these keys for this round"
                )
        if len({keys.public for keys in self._roster}) != len(self._roster):
            raise SumError("a client is in the roster twice")

    def _enough(self, count: int, what: str) -> None:
        if count < self._least:
            raise SumError(f"{count} clients {what}; this client takes part with {self._least} or more")

    def share(self, roster: bytes) -> bytes:
        """Commitment to the own mask's seed; for every client, the commitments to its shares and the shares, sealed."""
        self._at(1)
        payload = s.unpack(roster, s.ROSTER, self.session)
        self._roster = read_roster(payload, self._signer is not None)
        if self._roster.count(self.keys) != 1 or len(set(self._roster)) != len(self._roster):
            raise SumError("the roster does not hold this client's keys once, or others' twice")
        if self._signer is not None:
            self._vouch()
        self._enough(len(self._roster), "are in the roster")
        self._bound = s.bound(self.session, payload)
        self._number = own = self._roster.index(self.keys) + 1
        self._threshold = threshold_of(len(self._roster))
        parts = [s.commitment(self._seed, self.session, own, 0)]
        dealt = [
            shamir.split(secret, self._threshold, len(self._roster))
            for secret in (self._mask_key.private_bytes_raw(), self._seed)
        ]
        for number, shares in enumerate(zip(*dealt, strict=True), 1):
            parts += [s.commitment(share, self.session, own, number) for share in shares]
            if number == own:
                self._held[own] = b"".join(shares)
                parts.append(bytes(s.CIPHER))
            else:
                parts.append(seal(self._cipher(number), own, number, self._bound, b"".join(shares)))
        return s.pack(s.SHARES, self.session, *parts)

    def _cipher(self, other: int) -> bytes:
        return agreed(self._channel, self._roster[other - 1].channel, self._bound, b"shares")

    def mask(self, delivery: bytes, values: Sequence[int]) -> bytes:
        """The masked integers: values + own mask + masks with those after this client - masks with those before it, mod 2^64."""
        self._at(2)
        payload = s.unpack(delivery, s.DELIVERY, self.session)
        entries = s.pieces(payload, 4 + s.CIPHER)
        self._dealers = s.unpack_members(b"".join(entry[:4] for entry in entries), len(self._roster))
        if self._number not in self._dealers or len(self._dealers) < self._threshold:
            raise SumError(
                f"{len(self._dealers)} clients dealt shares; expected {self._threshold} at least, this one among them"
            )
        self._enough(len(self._dealers), "dealt shares")
        if len(values) != self.length:
            raise SumError(f"{len(values)} integers; expected {self.length}")
        total = np.array(to_words(values), dtype=np.uint64) + stream(self._seed, self.length)
        for number, entry in zip(self._dealers, entries, strict=True):
            if number == self._number:
                continue
            found = unseal(self._cipher(number), number, self._number, self._bound, entry[4:])
            if found is not None:
                # what cannot be read is missed only if that dealer must be recovered
                self._held[number] = found
            pair = stream(agreed(self._mask_key, self._roster[number - 1].mask, self._bound, b"mask"), self.length)
            total = total + pair if number > self._number else total - pair
        return s.pack(s.MASKED, self.session, total.astype("<u8").tobytes())

    def unmask(self, survivors: bytes) -> bytes:
        """For every dealer the share of its own mask where it survived, of its pair masks' key where not; zeros for none."""
        self._at(3)
        alive = s.unpack_members(s.unpack(survivors, s.SURVIVORS, self.session), len(self._roster))
        if len(alive) < self._threshold or self._number not in alive or not set(alive) <= set(self._dealers):
            raise SumError(
                f"{len(alive)} survivors of {len(self._dealers)} dealers; expected {self._threshold} at least, all of them "
                "dealers, this client among them"
            )
        self._enough(len(alive), "are in the sum")
        size, parts = shamir.SHARE_BYTES, []
        for number in self._dealers:
            both = self._held.get(number, bytes(2 * size))
            parts.append(both[size:] if number in alive else both[:size])
        return s.pack(s.UNMASK, self.session, *parts)
