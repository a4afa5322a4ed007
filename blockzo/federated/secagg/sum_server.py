"""The server of a secure sum (secure_sum.py): collects, hands on, recovers the masks of those who vanished, learns the sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.sum_messages import Keys
from blockzo.federated.secagg import shamir
from blockzo.federated.secagg.crypto import agreed, key_from, need_cryptography, new_key, stream
from blockzo.federated.secagg.fixed_point import from_words
from blockzo.federated.secagg.sum_client import threshold_of
from blockzo.federated.signing import fingerprint, verified
from blockzo.federated.sums import SumError

_DEAL = 2 * s.COMMITMENT + s.CIPHER


class SumServer:
    """One sum: `advertised` for every client, then `roster`; `dealt`, `deliveries`; `masked`, `survivors`; `unmasked`, `total`.

    Methods that take a client's message raise SumError where it is wrong; the client then counts as gone. Methods that end a
    phase raise it where too few clients are left; the sum is over then, and nothing was learned.

    Args:
        signed: clients sign their keys (secure_sum.py).
        roster: public keys that clients know, where the server has the list too: who is not in it is refused at once, or the
            others would refuse the whole sum.

    Attributes: `bound`, session and roster as one; `numbers`, client -> its number from 1, once the roster stands;
    `wrong_shares`, how many by client.
    """

    def __init__(
        self,
        session: bytes,
        length: int,
        signed: bool = False,
        address: bytes = b"",
        roster: Collection[bytes] | None = None,
    ) -> None:
        need_cryptography()
        self.session, self.length = session, length
        self.signed, self._address, self._known = signed, address, roster
        self.bound = b""
        self.numbers: dict[str, int] = {}
        self.wrong_shares: Counter[str] = Counter()
        self._phase = 0
        self._keys: dict[str, Keys] = {}
        self._deals: dict[int, list[bytes]] = {}
        self._seeds: dict[int, bytes] = {}
        self._masked: dict[int, Any] = {}
        self._alive: list[int] = []
        self._shares: dict[int, dict[int, bytes]] = {}
        """Dealer -> holder -> share."""
        self._answered: set[int] = set()

    @property
    def threshold(self) -> int:
        return threshold_of(len(self.numbers))

    @property
    def survivors_names(self) -> list[str]:
        """Whose integers are in the sum."""
        return [name for name, number in self.numbers.items() if number in self._alive]

    def _number(self, name: str, phase: int, known: Callable[[int], bool]) -> int:
        number = self.numbers.get(name, 0)
        if self._phase != phase or not number or known(number):
            raise SumError(f"a message of phase {phase} from {name!r}; it was not asked for, or came late or twice")
        return number

    def _end(self, phase: int, left: int, needed: int) -> None:
        if self._phase != phase:
            raise SumError(f"phase {phase} cannot end in phase {self._phase}")
        if left < needed:
            raise SumError(f"{left} clients are left after phase {phase}; the sum needs {needed}")
        self._phase += 1

    def advertised(self, name: str, data: bytes) -> None:
        if self._phase or name in self._keys:
            raise SumError(f"keys of {name!r} came late or twice")
        (entry,) = s.pieces(s.unpack(data, s.ADVERTISE, self.session), Keys.size(self.signed), 1)
        keys = Keys.unpack(entry)
        if any(keys.channel == other.channel or keys.mask == other.mask for other in self._keys.values()):
            raise SumError(f"keys of {name!r} are another client's")
        if self.signed:
            self._vouch(name, keys)
        for key in (keys.channel, keys.mask):
            try:
                agreed(new_key(), key, self.session, b"check")
            except ValueError as error:
                raise SumError(f"a key of {name!r} agrees on nothing secret ({error})") from None
        self._keys[name] = keys

    def _vouch(self, name: str, keys: Keys) -> None:
        """The other clients would refuse the whole sum for one of these."""
        if self._known is not None and keys.public not in self._known:
            raise SumError(f"the key of {name!r}, {fingerprint(keys.public)}, is not in the roster")
        if any(keys.public == other.public for other in self._keys.values()):
            raise SumError(f"the long-term key of {name!r} is another client's")
        if not verified(keys.public, keys.signature, keys.statement(self._address, self.session)):
            raise SumError(f"{name!r} did not sign its keys for this sum")

    def withdraw(self, name: str) -> None:
        """Takes a client's keys back, before the roster stands."""
        if not self._phase:
            self._keys.pop(name, None)

    def roster(self) -> dict[str, bytes]:
        self._end(0, len(self._keys), 2)
        self.numbers = {name: number for number, name in enumerate(sorted(self._keys), 1)}
        payload = b"".join(self._keys[name].pack() for name in self.numbers)
        self.bound = s.bound(self.session, payload)
        data = s.pack(s.ROSTER, self.session, payload)
        return dict.fromkeys(self.numbers, data)

    def dealt(self, name: str, data: bytes) -> None:
        number = self._number(name, 1, self._deals.__contains__)
        payload = s.unpack(data, s.SHARES, self.session)
        deals = s.pieces(payload[s.COMMITMENT :], _DEAL, len(self.numbers))
        self._deals[number], self._seeds[number] = deals, payload[: s.COMMITMENT]

    def deliveries(self) -> dict[str, bytes]:
        self._end(1, len(self._deals), self.threshold)
        names = {number: name for name, number in self.numbers.items()}
        result = {}
        for number in sorted(self._deals):
            entries = [
                s.pack_members([dealer]) + self._deals[dealer][number - 1][2 * s.COMMITMENT :]
                for dealer in sorted(self._deals)
            ]
            result[names[number]] = s.pack(s.DELIVERY, self.session, *entries)
        return result

    def masked(self, name: str, data: bytes) -> None:
        number = self._number(name, 2, lambda n: n in self._masked or n not in self._deals)
        (words,) = s.pieces(s.unpack(data, s.MASKED, self.session), 8 * self.length, 1)
        self._masked[number] = np.frombuffer(words, dtype="<u8").astype(np.uint64)

    def survivors(self) -> dict[str, bytes]:
        self._end(2, len(self._masked), self.threshold)
        self._alive = sorted(self._masked)
        data = s.pack(s.SURVIVORS, self.session, s.pack_members(self._alive))
        return dict.fromkeys(self.survivors_names, data)

    def unmasked(self, name: str, data: bytes) -> None:
        """Takes the shares that match their dealers' commitments; others are counted and left out.

        Zeros, for a share that could not be read, are not counted: that may be the dealer's fault as well.
        """
        number = self._number(name, 3, lambda n: n in self._answered or n not in self._alive)
        dealers = sorted(self._deals)
        found = s.pieces(s.unpack(data, s.UNMASK, self.session), shamir.SHARE_BYTES, len(dealers))
        self._answered.add(number)
        for dealer, share in zip(dealers, found, strict=True):
            at = s.COMMITMENT if dealer in self._alive else 0
            wanted = self._deals[dealer][number - 1][at : at + s.COMMITMENT]
            if s.commitment(share, self.session, dealer, number) == wanted:
                self._shares.setdefault(dealer, {})[number] = share
            elif any(share):
                self.wrong_shares[name] += 1

    def total(self) -> list[int]:
        """The sum of the survivors' integers, exact where it lies in [-2^63, 2^63).

        Raises:
            SumError: too few shares came, or a dealer's do not belong together; it names the dealer. It may be asked again after
                more shares have come.
        """
        if self._phase != 3:
            raise SumError(f"the sum is not to be had in phase {self._phase}")
        keys = [self._keys[name] for name in self.numbers]
        total = np.zeros(self.length, dtype=np.uint64)
        for number in self._alive:
            total += self._masked[number]
        for dealer in sorted(self._deals):
            secret = self._recovered(dealer)
            if dealer in self._alive:
                if s.commitment(secret, self.session, dealer, 0) != self._seeds[dealer]:
                    raise self._bad(dealer, "they give another seed than it promised")
                total -= stream(secret, self.length)
                continue
            key = key_from(secret)
            if key.public_key().public_bytes_raw() != keys[dealer - 1].mask:
                raise self._bad(dealer, "they give another key than it advertised")
            for number in self._alive:
                pair = stream(agreed(key, keys[number - 1].mask, self.bound, b"mask"), self.length)
                # what the survivor added or took away
                total = total - pair if dealer > number else total + pair
        return from_words([int(word) for word in total])

    def _recovered(self, dealer: int) -> bytes:
        shares = self._shares.get(dealer, {})
        if len(self._answered) < self.threshold:
            raise SumError(f"{len(self._answered)} clients gave shares; expected {self.threshold}")
        if len(shares) < self.threshold:
            raise self._bad(dealer, f"{len(shares)} right shares of {len(self._answered)}; expected {self.threshold}")
        try:
            return shamir.join(shares, self.threshold)
        except ValueError as error:
            raise self._bad(dealer, str(error)) from None

    def _bad(self, dealer: int, why: str) -> SumError:
        name = next(name for name, number in self.numbers.items() if number == dealer)
        error = SumError(f"the masks of {name!r} cannot be recovered from its shares: {why}")
        error.client = name
        return error
