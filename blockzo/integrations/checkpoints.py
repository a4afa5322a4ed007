"""The journal of a Trainer and its checkpoints: a checkpoint is a step of the journal, named by the digest of its weights."""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from blockzo.journal.file import Journal, JournalError
from blockzo.journal.outside import shown
from blockzo.journal.record import Record

STATE = "zo.json"
JOURNAL = "journal.bz"
"""Name of the copy in a folder of saved weights."""
LAST = "trainer_state.json"
"""What the Trainer writes last of a checkpoint."""
STEPS = "steps"
EVEN = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
"""Schedules that do not depend on how many steps a run has."""


@dataclass(frozen=True)
class Place:
    """Where a checkpoint stands.

    Attributes:
        step: number of the next step.
        digest: of the weights.
        made: what the steps that follow depend on (`ZOSettings.deciding`); None in checkpoints older than it.
    """

    step: int
    digest: str
    made: Mapping[str, Any] | None = None

    def write(self, folder: str) -> None:
        _replaced(Path(folder, STATE), lambda half: half.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8"))

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
            place = cls(**json.loads(file.read_text(encoding="utf-8")))
            if not isinstance(place.step, int) or not isinstance(place.digest, str):
                raise TypeError(f"step {shown(place.step)}, digest {shown(place.digest)}")
            return place
        except (ValueError, TypeError) as error:
            raise JournalError(f"{file} is damaged ({error}); resume from another checkpoint") from error

    def check(self, folder: str, made: Mapping[str, Any]) -> None:
        """Warns where only the number of steps is another, which a schedule depends on.

        Raises:
            JournalError: other settings, or other data, would make other steps than those of the run.
        """
        before, now = dict(self.made or {}), dict(made)
        steps = before.pop(STEPS, None), now.pop(STEPS, None)
        changed = {name: (was, now[name]) for name, was in before.items() if name in now and now[name] != was}
        if changed:
            raise JournalError(
                f"{folder} is of a run with {_listed(changed, 0)}; found {_listed(changed, 1)}: what follows would be the steps "
                "of another run. Pass what it had; or load its weights as the model, and train anew in another output_dir"
            )
        uneven = now.get("schedule") not in EVEN or 0 < (now.get("warmup_steps") or 0) < 1
        if None not in steps and steps[0] != steps[1] and uneven:
            warnings.warn(
                f"the run of {folder} was to have {steps[0]} steps, now {steps[1]}: rates of the {now.get('schedule')} schedule "
                "are others from here than in a run that had them from the beginning",
                stacklevel=3,
            )


def _listed(changed: Mapping[str, tuple[Any, Any]], which: int) -> str:
    return ", ".join(f"{name}={shown(both[which])}" for name, both in changed.items())


def lacks(folder: str | os.PathLike[str]) -> str | None:
    """What keeps a run from going on from a checkpoint, in words; None where it is whole.

    The Trainer writes its state last, so a save that was killed, or met a full disk, has none.
    """
    names = {file.name for file in Path(folder).iterdir()} if Path(folder).is_dir() else set()
    if not names:
        return "it is no folder with files"
    if LAST not in names:
        return f"it has no {LAST}, which is written last: its save was stopped"
    if STATE not in names:
        return f"it has no {STATE}, so no zeroth-order Trainer saved it"
    if missing := [name for name in ("optimizer.pt", "scheduler.pt") if name not in names]:
        return f"it has no {' and '.join(missing)} (save_only_model=True leaves them out), so rates would begin anew"
    for name in sorted(names):
        try:
            _readable(Path(folder, name))
        except Exception as error:
            return f"{name} is damaged ({error})"
    return None


def _readable(file: Path) -> None:
    """Whether what is in it is complete, by its own account of it."""
    if file.name in (STATE, LAST):
        json.loads(file.read_text(encoding="utf-8"))
    elif file.suffix == ".safetensors":
        with safe_open(str(file), "pt"):
            pass
    elif file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
        raise ValueError("its end is missing")


def last(folder: str) -> str:
    """The checkpoint of a folder that is furthest in its journal and whole; warns of others that are newer.

    Raises:
        JournalError: there is none.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]
    reasons = {path: lacks(path) for path in found}
    whole = [path for path, reason in reasons.items() if reason is None]
    # `train` once more numbers its checkpoints from 0 again
    order = sorted(whole, key=lambda path: (_step(path), int(path.name[11:])))
    passed = [
        f"{path.name}: {reasons[path]}"
        for path in sorted(found)
        if reasons[path] and (not order or path.stat().st_mtime >= order[-1].stat().st_mtime)
    ]
    if not order:
        raise JournalError(
            f"{folder} holds no checkpoint to go on from{''.join(f'; {one}' for one in passed)}. Remove the journal in it, if "
            "there is one, and train anew: the same arguments give the same steps"
        )
    if passed:
        warnings.warn(f"going on from {order[-1]}; {'; '.join(passed)}", stacklevel=4)
    return str(order[-1])


def _step(folder: Path) -> int:
    place = Place.read(str(folder))
    return -1 if place is None else place.step


def resumed(path: Path, folder: str | None, place: Place, moved: str) -> tuple[Journal, list[Record]]:
    """The journal cut to a checkpoint, and what was cut off; its copy in `folder` where `path` ends before it, or is not there.

    Raises:
        JournalError: neither holds the steps before it; `path` is of another run; or the run had another `moved`, which its
            records do not tell and its losses depend on.
    """
    copy = None if folder is None else Path(folder, JOURNAL)
    own, kept = (None if one is None or not one.exists() else _opened(one) for one in (path, copy))
    if own is not None and kept is not None and not _one_run(own, kept, place.step):
        raise JournalError(
            f"{path} is of another run than the checkpoint {folder}: their steps differ; pass another journal= or output_dir=, "
            "or move the file away"
        )
    if own is None or not _holds(own, place, folder is None):
        if kept is None or not _holds(kept, place):
            raise JournalError(
                f"{path} does not hold the {place.step} steps before the checkpoint {folder or ''}, nor a copy in it; "
                "resume from another checkpoint, or train anew with another journal"
            )
        assert copy is not None
        carry(copy, path)
    # a journal without it is older than the option
    before = Journal.open(path).metadata.get("settings", {}).get("moved", "auto")
    if before != moved:
        raise JournalError(
            f"{path} is of a run with moved={before!r}, now moved={moved!r}; pass what it had, or train anew in another "
            "output_dir"
        )
    journal = Journal.resume(path)
    try:
        after = list(journal.records(place.step))
        journal.truncate(place.step)
    except BaseException:
        journal.close()
        raise
    return journal, after


def _opened(path: Path) -> Journal:
    try:
        return Journal.open(path)
    except JournalError as error:
        raise JournalError(
            f"{error}. Move it away: a checkpoint that has a copy ({JOURNAL}) is gone on from by it"
        ) from None


def _holds(journal: Journal, place: Place, digest_may_lack: bool = False) -> bool:
    """Whether the steps before a checkpoint are in a journal, and lead to its weights."""
    if not journal.start <= place.step <= journal.next_step:
        return False
    before = journal.records()[: place.step - journal.start]
    digest = before[-1].digest if before else journal.base_digest
    return digest == place.digest or (digest is None and digest_may_lack)


def _one_run(own: Journal, kept: Journal, step: int) -> bool:
    """Whether two journals begin at the same weights and have the same steps, as far as both go, before `step`."""
    if own.layout != kept.layout or (own.start == kept.start and own.base_digest != kept.base_digest):
        return False
    first, end = max(own.start, kept.start), min(own.next_step, kept.next_step, step)
    return all(
        replace(mine, digest=None) == replace(other, digest=None)
        for mine, other in zip(own.records(first)[: end - first], kept.records(first)[: end - first], strict=True)
    )


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


def check_target(journal: Journal, target: Path) -> None:
    """JournalError where saving weights would replace the journal of another run."""
    if not target.exists() or target.samefile(journal.path):
        return
    there = _opened(target)
    if len(there) and not _one_run(there, journal, there.next_step):
        raise JournalError(
            f"{target} is the journal of another run, of {len(there)} steps; save in another folder, or move it away"
        )


def carry(source: Path, target: Path) -> None:
    """Copies a journal; a file of that name is replaced at once."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _replaced(target, lambda half: shutil.copyfile(source, half))


def _replaced(target: Path, write: Callable[[Path], Any]) -> None:
    """A file that is there whole, or as it was."""
    half = target.with_name(target.name + ".part")
    try:
        write(half)
        os.replace(half, target)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
