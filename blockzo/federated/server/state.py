"""What a server knows of a run: its history, its clients, the round that is open; and how clients are refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings, run_tag
from blockzo.federated.server.history import History
from blockzo.federated.server.open_round import OpenRound
from blockzo.federated.server.right_weights import Replica, RightWeights
from blockzo.journal.file import Journal, JournalError

log = logging.getLogger("blockzo.federated")


class ServerState:
    """Shared by `Server`, which runs rounds, and `Receiving`, which answers messages.

    Attributes: `refusals`, `positions`, `diverged` as of `Server`; `open`, the round that is open; `right`, the weights that
    clients must have.
    """

    def __init__(self, settings: RunSettings, journal: Journal, policy: RoundPolicy, replica: Replica | None) -> None:
        if journal.base_digest is None:
            raise JournalError(
                "a federated run needs the digest of its base weights; create the journal with base_digest"
            )
        self.settings, self.policy = settings, policy
        self.history = History(settings, journal, policy)
        self.base_digest: str = journal.metadata.get("base_digest", journal.base_digest)
        self.tag = run_tag(settings, self.base_digest, journal.layout)
        self.right = RightWeights(self.history, replica)
        self.positions: dict[str, int] = {}
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.diverged: set[str] = set()
        self.open: OpenRound | None = None

    @property
    def number(self) -> int:
        """Of the next round: rounds in the journal."""
        return self.history.number

    def gone(self, name: str) -> None:
        """A client will not answer in this round."""
        if self.open is not None:
            self.open.silent.add(name)

    def refuse(self, name: str, code: str, reason: str) -> bytes:
        """Counts and logs a refusal; the message that tells of it."""
        if code == m.INVALID:
            # nothing better will come; should it come after all, it counts
            self.gone(name)
        self.refusals[name, code] += 1
        log.warning("refused %s: %s (%s)", name, reason, code)
        return m.encode(m.Refused(code, reason), self.tag)

    def wrong_digest(self, name: str, number: int, digest: str | None) -> bytes | None:
        """The refusal that a digest deserves, or a missing one; None where it is right."""
        if not self.policy.wants_digest(number):
            return None if digest is None else self.refuse(name, m.INVALID, "a digest that was not asked for")
        wanted = self.right.digest(number, digest)
        return None if digest == wanted else self.diverge(name, number, digest, wanted)

    def diverge(self, name: str, number: int, told: str | None, wanted: str | None) -> bytes:
        """The refusal of a client whose weights are others; once a round it is repaired."""
        self.diverged.add(name)
        self.gone(name)
        if self.open is not None:
            if name in self.open.repaired:
                return self.refuse(
                    name, m.UNWANTED, "weights still differ after a repair; the round goes on without them"
                )
            self.open.repaired.add(name)
        reason = f"weights before round {number} are {told}, expected {wanted}"
        return self.refuse(name, m.DIVERGED, reason)

    def outvoted(self, digests: Mapping[str, str | None]) -> list[str]:
        """Who is sent back to the base, since most clients of the round have other weights."""
        names, wanted = self.right.outvoted(self.number, digests)
        for name in names:
            self.diverge(name, self.number, digests[name], wanted)
        return names
