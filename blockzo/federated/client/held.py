"""The rounds that a client holds: weights that follow the records, and a journal of them where it has a place for one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blockzo.federated.protocol import snapshots
from blockzo.federated.protocol.estimate import ClientWorker
from blockzo.federated.protocol.records import decode_record
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.file import Journal, JournalError

log = logging.getLogger("blockzo.federated")


class HeldRounds:
    """Args:
    path: of the journal; None: a client that is killed begins again at the base.
    folder: where snapshots of the server may be read.
    forget: called before the weights go elsewhere; what was found at them no longer holds.

    Attributes: `position`, rounds that the weights hold; `journal`, from `begin` on.
    """

    def __init__(
        self, worker: ClientWorker, path: Path | None, folder: Path | None, forget: Callable[[], None]
    ) -> None:
        self.worker, self.path, self.folder = worker, path, folder
        self.position = 0
        self.journal: Journal | None = None
        self._forget = forget
        self._settings: RunSettings | None = None

    def begin(self, settings: RunSettings) -> None:
        """Before the first record of a run; writes nothing."""
        self._settings = settings

    def restore(self, journal: Journal) -> None:
        """Goes on where an earlier process stopped.

        Raises:
            JournalError: the journal is another model's.
        """
        snapshot = journal.metadata.get("snapshot")
        begins = self.worker.base_digest
        if snapshot is not None and self._lost(journal, snapshot):
            return
        if snapshot is not None:
            begins = self.worker.digest()
        if journal.base_digest != begins or journal.layout != self.worker.layout:
            journal.close()
            raise JournalError(
                f"{journal.path} begins at weights {journal.base_digest}, the model is {begins} (or cut into other "
                "blocks); load the base model it names, or choose another place for the client's state"
            )
        self.journal = journal
        self.worker.replay(journal.records())
        self.position = journal.next_step

    def _lost(self, journal: Journal, snapshot: Mapping[str, Any]) -> bool:
        """Loads the weights that the journal begins at; where that fails the client begins again at the base.

        Journal and weights are moved aside then, since why they cannot be loaded may pass: a client at that path has them again.
        """
        if "pool" not in snapshot:
            snapshot = {**snapshot, "path": str(_beside(journal.path))}
        try:
            self.worker.reset(dict(snapshot))
            return False
        except Exception as error:
            reason = error
        journal.close()
        try:
            kept = _move_aside(journal.path)
        except OSError as error:
            raise JournalError(
                f"{journal.path} begins at weights that cannot be loaded ({reason}), and cannot be moved aside ({error}); put "
                "these weights back, or choose another place for the client's state"
            ) from reason
        log.warning(
            "%s begins at weights that cannot be loaded (%s); it is kept as %s, and this client begins again at the base",
            journal.path,
            reason,
            kept,
        )
        self.worker.reset(None)
        return True

    def open_journal(self) -> None:
        """Makes the client's journal, where it has a place and none is open."""
        if self.path is not None and self.journal is None:
            self.journal = self._new_journal()

    def _new_journal(self, snapshot: dict[str, Any] | None = None, start: int = 0) -> Journal:
        assert self.path is not None and self._settings is not None
        metadata = {"federated": self._settings.as_dict(), **({"snapshot": snapshot} if snapshot else {})}
        base = self.worker.digest() if snapshot else self.worker.base_digest
        exact = not self._settings.pool
        return Journal.create(self.path, base, self.worker.layout, metadata, exact, start)

    def apply(self, first: int, count: int, data: bytes) -> None:
        """Decodes all of them before the first is applied; those that the weights hold already are left out."""
        assert self._settings is not None
        records, at = [], 0
        for number in range(first, first + count):
            record, at = decode_record(data, at, number, self._settings)
            records.append(record)
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes follow the {count} records of a message")
        new = records[self.position - first :]
        if not new:
            return
        if self.journal is not None:
            self.journal.extend(new)
        try:
            self.worker.replay(new)
        except BaseException:
            # some weights may be moved and others not
            self.reset(None, 0)
            raise
        self.position += len(new)

    def _placed(self, snapshot: Mapping[str, Any]) -> dict[str, Any]:
        """A snapshot with its place on this machine: the server names a digest, the client's owner a folder."""
        if "pool" in snapshot:
            return dict(snapshot)
        if self.folder is None:
            raise ValueError(
                "the rounds that this client missed begin at a snapshot, and it has no folder of them; expected the owner of "
                "this client to name one (Client(snapshots=FOLDER)), where the server's snapshots are put"
            )
        digest = str(snapshot.get("digest"))
        return {"round": snapshot["round"], "digest": digest, "path": str(snapshots.place(self.folder, digest))}

    def reset(self, snapshot: dict[str, Any] | None, position: int) -> None:
        """Begins again at a snapshot, or at the base. What this client holds goes once the weights it goes for are there."""
        self._forget()
        try:
            self.worker.reset(snapshot)
        except BaseException:
            if snapshot is not None:
                self._go_back()
            raise
        self.position = 0
        if self.journal is not None and self.path is not None:
            self.journal.close()
            self.path.unlink(missing_ok=True)
            self.journal = None
        try:
            if self.path is not None:
                if snapshot is not None and "pool" not in snapshot:
                    # of its own, since the server's may be gone when this client is started again
                    self.worker.save(_beside(self.path))
                self.journal = self._new_journal(snapshot, position)
        except BaseException:
            self.worker.reset(None)
            if self.path is not None and self.journal is None:
                self.journal = self._new_journal()
            raise
        self.position = position

    def _go_back(self) -> None:
        """To the weights of this client's own journal, after some that could not be loaded; without one, to the base."""
        self.worker.reset(None)
        journal, self.position = self.journal, 0
        if journal is None:
            return
        snapshot = journal.metadata.get("snapshot")
        if snapshot is not None:
            own = snapshot if "pool" in snapshot else {**snapshot, "path": str(_beside(journal.path))}
            self.worker.reset(dict(own))
        self.worker.replay(journal.records())
        self.position = journal.next_step

    def jump(self, snapshot: Mapping[str, Any], first: int) -> None:
        """To a snapshot that a server names, at which its records from `first` on begin.

        Raises:
            ValueError: it begins elsewhere, or its weights cannot be had here; the weights are as before.
        """
        begins = snapshot.get("round")
        if begins != first or isinstance(begins, bool):
            raise ValueError(f"a snapshot of round {str(begins)[:20]} for records from {first} on; expected the same")
        self.reset(self._placed(snapshot), first)

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()


def _move_aside(journal: Path) -> Path:
    """Renames a journal, and the snapshot beside it, to the first names that are free: NAME.kept-1, NAME.kept-2, ..."""
    number = 1
    while (place := journal.with_name(f"{journal.name}.kept-{number}")).exists() or _beside(place).exists():
        number += 1
    # the snapshot first: while the journal stands where it was nothing has begun again
    if _beside(journal).exists():
        _beside(journal).rename(_beside(place))
    journal.rename(place)
    return place


def _beside(journal: Path) -> Path:
    """Where a client keeps the snapshot that its journal begins at."""
    return journal.with_name(journal.name + ".base.safetensors")
