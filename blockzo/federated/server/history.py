"""The rounds so far, as the server keeps and sends them: journal, encoded records, sums of a pool, snapshots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockzo.federated.protocol import snapshots
from blockzo.federated.protocol.direction_pool import DirectionPool
from blockzo.federated.protocol.messages import Records
from blockzo.federated.protocol.planned import RoundPlanner
from blockzo.federated.protocol.records import encode_record
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.journal.file import Journal
from blockzo.journal.record import Record


class History:
    """Attributes: `journal`, the truth; `number` of the next round; `planner`, in a planned run."""

    def __init__(self, settings: RunSettings, journal: Journal, policy: RoundPolicy) -> None:
        self.settings, self.journal, self.policy = settings, journal, policy
        self._encoded: dict[int, bytes] = {}
        self._pool = DirectionPool(settings) if settings.pool else None
        if self._pool is not None:
            if policy.snapshot_every:
                raise ValueError("a pool needs no snapshots of weights; leave snapshot_every at 0")
            self._pool.add(journal.records())
        self.planner: RoundPlanner | None = None
        if settings.planned:
            if policy.snapshot_every:
                raise ValueError("a planner learns from all records; leave snapshot_every at 0")
            self.planner = RoundPlanner(settings)
            self.planner.observe(journal.records())

    @property
    def number(self) -> int:
        return self.journal.next_step

    def append(self, record: Record) -> None:
        """Returns when the record is on disk."""
        self.journal.append(record)
        if self._pool is not None:
            self._pool.add([record])
        if self.planner is not None:
            self.planner.observe([record])

    def compact(self, digest: str, save: Callable[[Path], None]) -> None:
        """Takes a snapshot, and cuts the journal at the one before; `digest` and `save` are those of the present weights."""
        path, run = self.journal.path, self.settings.run
        old = [facts for facts in snapshots.find(path, run) if self.journal.start < facts["round"] < self.number]
        if old:
            first = old[-1]["round"]
            self.journal = snapshots.cut(self.journal, old[-1])
            self._encoded = {number: data for number, data in self._encoded.items() if number >= first}
            snapshots.clean(path, run, first)
        snapshots.take(path, run, self.number, digest, save)

    @property
    def snapshot(self) -> dict[str, Any] | None:
        """Where the journal begins, with the path of the weights; None at the base."""
        found = self.journal.metadata.get("snapshot")
        return None if found is None else snapshots.placed(found, self.journal.path.parent)

    def suffix(self, first: int) -> bytes | None:
        """Encoded records from `first` on; None where they do not fit into a message, or where something shorter leads on."""
        if first < self.journal.start or (self._pool is not None and self._pool.shorter(first)):
            return None
        found = self._pieces(first)
        return b"".join(found) if first + len(found) == self.number else None

    def catch_up(self, position: int) -> Records:
        """The next message for a client that holds `position` records: a snapshot or sums where needed, and records that fit."""
        snapshot: dict[str, Any] | None = None
        if position < self.journal.start:
            # where it lies on this machine is nobody's business, and no client would follow it
            held = self.journal.metadata["snapshot"]
            snapshot = {name: held[name] for name in ("run", "round", "digest", "bytes")}
            position = self.journal.start
        if self._pool is not None and self._pool.shorter(position):
            snapshot = self._pool.snapshot()
            position = snapshot["round"]
        found = self._pieces(position)
        return Records(position, len(found), b"".join(found), position + len(found) == self.number, snapshot)

    def _pieces(self, first: int) -> list[bytes]:
        found: list[bytes] = []
        size = 0
        for record in self.journal.records(first):
            data = self._bytes_of(record)
            size += len(data)
            # one record always goes, or nobody could catch up
            if found and size > self.policy.most_bytes:
                break
            found.append(data)
        return found

    def _bytes_of(self, record: Record) -> bytes:
        if record.step not in self._encoded:
            self._encoded[record.step] = encode_record(record, self.settings)
        return self._encoded[record.step]
