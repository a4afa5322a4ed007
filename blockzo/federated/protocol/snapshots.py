"""Snapshots keep a server's journal bounded: weights of some round, from which clients that were away for long begin.

A snapshot of the journal NAME is `DIGEST.safetensors` and, written after it, `NAME.snapshot-ROUND.json` with run, round, digest,
size and file. The journal is cut at the snapshot before the newest, so that it holds between one and two
intervals, and no client needs weights for a short absence.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blockzo.journal.file import Journal
from blockzo.journal.files import sync_directory
from blockzo.journal.outside import printable


def find(journal: Path, run: str) -> list[dict[str, Any]]:
    """Complete snapshots of a run, oldest first: {"run", "round", "digest", "bytes", "file"}."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in journal.parent.glob(f"{journal.name}.snapshot-*.json")
    ]
    return sorted((facts for facts in found if facts["run"] == run), key=lambda facts: facts["round"])


def any_beside(journal: Path) -> Path | None:
    """A file of some snapshot of a journal with this name."""
    return next(iter(sorted(journal.parent.glob(f"{journal.name}.snapshot-*"))), None)


def place(folder: Path, digest: str) -> Path:
    """The file of a digest in a folder: nothing else that a server may say names a file.

    Raises:
        ValueError: it is no digest, or what lies there is no plain file.
    """
    if not re.fullmatch(r"bz1-[0-9a-f]{64}", digest):
        raise ValueError(f"the digest of a snapshot is {printable(digest)}; expected bz1- and 64 hexadecimal digits")
    path = folder / f"{digest}.safetensors"
    try:
        # no link out of the folder, and no pipe to wait at
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ValueError(f"the snapshot {digest} cannot be read from this client's folder: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"what this client's folder holds for the snapshot {digest} is no plain file")
    finally:
        os.close(handle)
    return path


def placed(snapshot: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The snapshot with the path of its file, which lies in `folder`."""
    return {**snapshot, "path": str(folder / snapshot["file"])}


def take(journal: Path, run: str, number: int, digest: str, save: Callable[[Path], None]) -> None:
    """Writes the snapshot of the weights after `number` rounds; it counts once its JSON file is there.

    Args:
        save: writes the weights to a path.
    """
    for orphan in journal.parent.glob(f".{journal.name}.snapshot-*"):
        orphan.unlink()
    weights = journal.with_name(f"{digest}.safetensors")
    temporary = journal.with_name(f".{journal.name}.snapshot-{number}.safetensors")
    save(temporary)
    facts = {"run": run, "round": number, "digest": digest, "bytes": temporary.stat().st_size, "file": weights.name}
    _settle(temporary, weights)
    temporary = temporary.with_suffix(".json")
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    _settle(temporary, journal.with_name(f"{journal.name}.snapshot-{number}.json"))


def _settle(temporary: Path, path: Path) -> None:
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def cut(journal: Journal, snapshot: dict[str, Any]) -> Journal:
    """The journal without the rounds before a snapshot, under the same name; a kill leaves the old one or the new one.

    Returns:
        The new journal, open for appending; the old one is closed.
    """
    first = snapshot["round"]
    metadata = {**journal.metadata, "snapshot": snapshot}
    new_path = journal.path.with_name(journal.path.name + ".cut")
    new_path.unlink(missing_ok=True)
    new = Journal.create(new_path, snapshot["digest"], journal.layout, metadata, start=first)
    new.extend(journal.records(first))
    new.close()
    os.replace(new_path, journal.path)
    sync_directory(journal.path.parent)
    journal.close()
    return Journal.resume(journal.path)


def clean(journal: Path, run: str, before: int) -> None:
    """Removes a run's snapshots older than a round; the JSON file goes first."""
    for facts in find(journal, run):
        if facts["round"] < before:
            journal.with_name(f"{journal.name}.snapshot-{facts['round']}.json").unlink()
            # a rate of 0 leaves the weights as they were: one file for two rounds
            if facts["file"] not in {other["file"] for other in find(journal, run)}:
                journal.with_name(facts["file"]).unlink(missing_ok=True)
