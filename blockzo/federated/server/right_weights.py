"""Which weights clients must have before a round: those of a replica on the server, else those of most clients."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from blockzo.federated.protocol.settings import RunSettings
from blockzo.federated.server.history import History
from blockzo.journal.record import Record

log = logging.getLogger("blockzo.federated")


class Replica(Protocol):
    """Weights that follow the journal, on the server: they say which digest is right."""

    def begin(self, settings: RunSettings) -> None: ...

    def reset(self, snapshot: Mapping[str, Any] | None) -> None: ...

    def replay(self, records: Sequence[Record]) -> None: ...

    def digest(self) -> str: ...

    def save(self, path: Path) -> None: ...


class RightWeights:
    """Digests of a run, of one replica or of none."""

    def __init__(self, history: History, replica: Replica | None) -> None:
        self.history, self.replica = history, replica
        self._digest: tuple[int, str] | None = None

    def digest(self, number: int, told: str | None) -> str | None:
        """What a client's digest must be: that of the replica, or of the base; else what it told, until the clients can vote."""
        journal = self.history.journal
        if number == journal.start and told is not None:
            return journal.base_digest
        if self.replica is None:
            return "a digest" if told is None else told
        if self._digest is None or self._digest[0] != number:
            self._digest = (number, self.replica.digest())
        return self._digest[1]

    def outvoted(self, number: int, digests: Mapping[str, str | None]) -> tuple[list[str], str | None]:
        """Without a replica the right weights are those that more than half of the clients have: the others, and the digest."""
        votes = Counter(digests.values())
        if len(votes) < 2 or self.replica is not None:
            return [], None
        wanted, count = votes.most_common(1)[0]
        if 2 * count <= len(digests):
            log.error("round %d: no majority of clients has the same weights; give the server a replica", number)
            wanted = None
        return [name for name, told in digests.items() if told != wanted], wanted
