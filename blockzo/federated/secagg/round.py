"""One attempt at a round over a secure sum, as the server sees it: four phases, who is due in each, and the mean at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.combine import Contribution
from blockzo.federated.protocol.round_record import problem_of
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.federated.secagg.sum_client import threshold_of
from blockzo.federated.secagg.sum_server import SumServer
from blockzo.federated.secagg.values import decoded, length_of
from blockzo.federated.signing import Roster
from blockzo.federated.sums import MOST_CLIENTS, SumError

log = logging.getLogger("blockzo.federated")

NOBODY = "(unknown)"
"""Who is blamed for a sum that cannot be."""
KINDS = (s.ADVERTISE, s.SHARES, s.MASKED, s.UNMASK)
"""What clients send, a phase each."""


def check_policy(policy: RoundPolicy, survivors: int = 0) -> None:
    """Refuses rounds whose sum could be of too few to hide anybody, or to hold the noise of `survivors` clients.

    Raises:
        ValueError: with what is needed.
    """
    if policy.roster is not None:
        Roster.load(Path(policy.roster))
    if policy.quorum < survivors:
        raise ValueError(
            f"quorum is {policy.quorum}, and the noise of {survivors} clients counts in every sum (privacy survivors): "
            "expected as many or more"
        )
    needed = max(2, threshold_of(policy.clients or 2))
    if policy.quorum < needed or (policy.clients or 2) > MOST_CLIENTS:
        raise ValueError(
            f"policy asks {policy.clients} clients with a quorum of {policy.quorum}; a secure sum needs at most "
            f"{MOST_CLIENTS} clients, and a quorum of more than half of those asked, here {needed} or more"
        )


class SecureRound:
    """Takes clients' messages (`take`) and ends phases (`advance`). It is over after the last, or when too few are left.

    Attributes: `phase`, from 0; `due`, clients asked in it; `taken`, what came, by client; `digests`, of the clients' weights as
    they told them; `spent`, clients in a sum that is known, or would be with late answers, and does not count.
    """

    def __init__(
        self, settings: RunSettings, policy: RoundPolicy, tag: bytes, number: int, attempt: int, asked: Iterable[str]
    ) -> None:
        self.settings, self.policy, self.number = settings, policy, number
        self.nonce = os.urandom(s.NONCE)
        self.session = s.session_of(tag, number, attempt, self.nonce)
        known = None if policy.roster is None else Roster.load(Path(policy.roster)).names
        address = s.address_of(tag, number, attempt)
        self.sum = SumServer(self.session, length_of(settings), settings.signed_sum, address, known)
        self.phase = 0
        self.due = set(asked)
        self.taken: dict[str, bytes] = {}
        self.digests: dict[str, str | None] = {}
        self.spent: set[str] = set()
        self._failure: str | None = None
        self._blamed: list[str] = []
        self._mean: Contribution | None = None

    @property
    def over(self) -> bool:
        return self._failure is not None or self._mean is not None

    def problem_of(self, name: str, body: bytes) -> tuple[str, str] | None:
        """Why a message does not belong here, as code and reason; None where it may be taken."""
        try:
            s.check_form(body[0])
        except SumError as error:
            return m.INVALID, str(error)
        if body[1 : 1 + s.SESSION] != self.session:
            return m.STALE, "a message of another sum; every attempt at a round has one of its own"
        if self.over or body[0] in KINDS[: self.phase]:
            return m.STALE, f"message {body[0]} of a sum whose phase is over"
        if name not in self.due:
            return m.UNWANTED, f"this client is not due in phase {self.phase} of the sum"
        if body[0] != KINDS[self.phase]:
            return m.INVALID, f"message {body[0]} of a sum; expected {KINDS[self.phase]}"
        if self.taken.get(name, body) != body:
            return m.UNWANTED, "another message of this phase was accepted already"
        return None

    def take(self, name: str, body: bytes) -> str | None:
        """Takes a message that has no `problem_of`; why its payload is wrong, or None. The same one again changes nothing."""
        if name in self.taken:
            return None
        server = self.sum
        try:
            (server.advertised, server.dealt, server.masked, server.unmasked)[self.phase](name, body)
        except SumError as error:
            return str(error)
        self.taken[name] = body
        return None

    def withdraw(self, name: str) -> None:
        """Leaves a client out whose weights are others, before the roster stands."""
        self.sum.withdraw(name)
        self.taken.pop(name, None)

    def advance(self) -> dict[str, m.SumMessage]:
        """Ends the phase: what clients get next. Nothing after the last one, and where too few are left; then it is over."""
        server = self.sum
        try:
            if self.phase == len(KINDS) - 1:
                self._mean = self._checked()
                return {}
            # before anything goes out that would let a smaller sum be known
            if len(self.taken) < self.policy.quorum:
                raise SumError(
                    f"{len(self.taken)} clients are left after phase {self.phase}, the quorum is {self.policy.quorum}"
                )
            found = (server.roster, server.deliveries, server.survivors)[self.phase]()
        except SumError as error:
            self._failure = str(error)
            self.spent = set(server.survivors_names)
            self._blamed += [error.client] if error.client is not None else []
            return {}
        self.phase += 1
        self.due, self.taken = set(found), {}
        return {name: m.SumMessage(body) for name, body in found.items()}

    def _checked(self) -> Contribution:
        """The mean, where it can be one; of single clients nothing can be checked."""
        total = self.sum.total()
        names = self.sum.survivors_names
        try:
            mean = decoded(total, self.settings, len(names))
            reply = m.Reply(self.number, mean.examples, mean.loss, mean.scalars)
            # noise may be larger than any change of the loss
            noisy = self.settings.private is not None
            problem = None if noisy else problem_of(reply, 0, self.settings, self.policy, len(names))
            if problem is not None:
                raise SumError(problem)
        except SumError as error:
            wild = SumError(f"the mean of {', '.join(names)} cannot be ({error}); the sum hides whose fault that is")
            wild.client = NOBODY
            raise wild from None
        return mean

    def outcome(self) -> tuple[tuple[str, ...], list[m.Reply], list[str]]:
        """Who is in the sum, their mean as one reply (nobody and none where it failed), and whom to blame for what was wrong."""
        blamed = list(self._blamed)
        for name, count in self.sum.wrong_shares.items():
            log.warning("round %d: %d wrong shares from %s", self.number, count, name)
            blamed.append(name)
        if self._mean is None:
            log.warning("round %d: no sum: %s", self.number, self._failure or "it was closed before its end")
            return (), [], blamed
        mean = m.Reply(self.number, self._mean.examples, self._mean.loss, self._mean.scalars)
        return tuple(self.sum.survivors_names), [mean], blamed
