"""The journal of a Trainer and its checkpoints: a checkpoint is a step of the journal, named by the digest of its weights."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockzo.journal.file import Journal, JournalError

STATE = "zo.json"
JOURNAL = "journal.bz"
"""Name of the copy in a folder of saved weights."""


@dataclass(frozen=True)
class Place:
    """Where a checkpoint stands: number of the next step, and digest of the weights."""

    step: int
    digest: str

    def write(self, folder: str) -> None:
        Path(folder, STATE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str) -> Place | None:
        """None where the checkpoint was not written by a zeroth-order Trainer.

        Raises:
            JournalError: the file is damaged.
        """
        file = Path(folder, STATE)
        if not file.exists():
            return None
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise JournalError(f"{file} is damaged ({error}); resume from another checkpoint") from error


def holds(path: Path, place: Place) -> bool:
    """Whether the steps before a checkpoint are in a journal, as far as its digests say."""
    if not path.exists():
        return False
    journal = Journal.open(path)
    if not journal.start <= place.step <= journal.next_step:
        return False
    before = journal.records()[: place.step - journal.start]
    return (before[-1].digest if before else journal.base_digest) in (None, place.digest)


def resumed(path: Path, folder: str | None, place: Place, moved: str) -> Journal:
    """The journal cut to a checkpoint; its copy in `folder` where the steps are not in it.

    Raises:
        JournalError: neither holds them; or the run had another `moved`, which its records do not tell and its losses depend on.
    """
    if not holds(path, place):
        copy = None if folder is None else Path(folder, JOURNAL)
        if copy is None or not holds(copy, place):
            raise JournalError(
                f"{path} does not hold the {place.step} steps before the checkpoint {folder or ''}, nor a copy in it; "
                "resume from another checkpoint, or train anew with another journal"
            )
        carry(copy, path)
    # a journal without it is older than the option
    before = Journal.open(path).metadata.get("settings", {}).get("moved", "auto")
    if before != moved:
        raise JournalError(
            f"{path} is of a run with moved={before!r}, now moved={moved!r}; pass what it had, or train anew in another "
            "output_dir"
        )
    journal = Journal.resume(path)
    journal.truncate(place.step)
    return journal


def begun(path: Path, digest: str, layout: dict[str, int], metadata: dict[str, Any], exact: bool) -> Journal:
    """A new journal.

    Raises:
        JournalError: there is one already.
    """
    if path.exists():
        raise JournalError(
            f"{path} exists, of {len(Journal.open(path))} steps; pass resume_from_checkpoint=True to go on from the last "
            "checkpoint, another journal= or output_dir=, or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return Journal.create(path, digest, layout, metadata, exact)


def carry(source: Path, target: Path) -> None:
    """Copies a journal; a file of that name is replaced at once."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(target.name + ".part")
    shutil.copyfile(source, half)
    os.replace(half, target)
