"""Snapshots keep a server's journal bounded: weights of some round, from which clients that were away for long begin.

A snapshot is `snapshot-ROUND.safetensors` and, written after it, `snapshot-ROUND.json` with its round, digest and size. The
journal is cut at the snapshot before the newest, so that it holds between one and two intervals, and no client needs weights for
a short absence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockzo.journal import Journal


def find(folder: Path) -> list[dict[str, Any]]:
    """Complete snapshots in a folder, oldest first: {"round", "digest", "bytes", "path"}."""
    found = []
    for path in folder.glob("snapshot-*.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["path"] = str(path.with_suffix(".safetensors"))
        found.append(facts)
    return sorted(found, key=lambda facts: facts["round"])


def take(folder: Path, number: int, digest: str, save: Callable[[Path], None]) -> None:
    """Writes the snapshot of the weights after `number` rounds; it counts once its JSON file is there.

    Args:
        save: writes the weights to a path.
    """
    weights, facts = folder / f"snapshot-{number}.safetensors", folder / f"snapshot-{number}.json"
    temporary = weights.with_name(f".{weights.name}.{os.getpid()}")
    save(temporary)
    size = temporary.stat().st_size
    _settle(temporary, weights)
    temporary = facts.with_name(f".{facts.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"round": number, "digest": digest, "bytes": size}), encoding="utf-8")
    _settle(temporary, facts)


def _settle(temporary: Path, path: Path) -> None:
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
    new.extend(journal.records()[first - journal.start :])
    new.close()
    os.replace(new_path, journal.path)
    journal.close()
    return Journal.resume(journal.path)


def clean(folder: Path, before: int) -> None:
    """Removes snapshots older than a round; the JSON file goes first."""
    for facts in find(folder):
        if facts["round"] < before:
            Path(facts["path"]).with_suffix(".json").unlink()
            Path(facts["path"]).unlink(missing_ok=True)
