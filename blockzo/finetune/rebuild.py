"""`blockzo replay`: the fine-tuned model from its base and a small journal, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from blockzo import Journal, JournalError, digest, replay_
from blockzo.finetune.errors import UserError
from blockzo.finetune.facts import RunFacts
from blockzo.finetune.models.devices import find_device
from blockzo.finetune.models.loading import load, resolve, save
from blockzo.finetune.output import make_folder, write_whole
from blockzo.finetune.progress import Reporter
from blockzo.finetune.settings import Settings
from blockzo.ops.params import named_tensors


def replay(
    base: str,
    path: Path,
    out: Path,
    partial: bool = False,
    reporter: Reporter | None = None,
    trust_remote_code: bool = False,
    steps: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Rebuilds the model of `path`'s run from `base` and writes it to the new folder `out`.

    Args:
        partial: allow a journal that has no end yet; the model is that of its last complete step.
        trust_remote_code: run Python code that comes with `base`; what the journal says of it does not count.
        device: where the weights are updated; the result has the same bits everywhere.
        steps: the model after so many steps, instead of the last one. What is replayed after it was written must still end
            at the journal's digest.

    Returns:
        What `--json` prints.

    Raises:
        JournalError: the journal is damaged or not finished, `base` has other weights, or the result has other bits.
        UserError: `base` cannot be loaded, or has another configuration or tokenizer; `out` exists or cannot be written.
    """
    reporter = reporter or Reporter()
    journal, count = opened(path, out, partial, steps)
    facts = RunFacts.of(journal)
    if facts.pooled:
        raise JournalError(
            f"{path} is of rounds with a finite pool of directions, whose weights are made again now and then, which a replay of "
            "its records does not: use the model/ that the simulation left"
        )
    settings = Settings.from_dict(facts.of_the_model)
    source = resolve(base, None, reporter.say)
    reporter.say(f"loading {source}")
    loaded = load(
        source,
        settings.dtype,
        settings.head,
        facts.classes,
        settings.seed,
        settings.task,
        trust_remote_code=trust_remote_code,
        device=find_device(device),
        peft=settings.peft,
        trainable=settings.trainable,
        quantize=settings.quantize,
    )
    for note in loaded.notes:
        reporter.warn(note)
    found = begins_at(journal, base, loaded.model, f" ({settings.model}, {settings.dtype})")
    unchecked = facts.check_model(loaded)
    if unchecked is not None:
        reporter.warn(unchecked)
    told = applied(journal, loaded.model, count, out, lambda place: save(loaded, place), reporter)
    checked = "weights" if unchecked else "weights, configuration and tokenizer"
    return {**told, "base": base, "base_digest": found, "checked": checked}


def opened(path: Path, out: Path, partial: bool, steps: int | None) -> tuple[Journal, int]:
    """The journal, whole unless `partial`, and how many of its steps are replayed; `out` must not be there."""
    if out.exists():
        raise UserError(f"{out} exists: choose another folder, or remove it")
    journal = Journal.open(path)
    if not journal.finished and not partial:
        raise JournalError(
            f"{path} has no end: it holds {len(journal)} steps of a run that was not finished. Resume the run, or rebuild what "
            "there is with --partial"
        )
    if not partial:
        journal.verify()
    count = len(journal) if steps is None else steps
    if not 0 <= count <= len(journal):
        raise UserError(f"--steps is {count}, but {path} holds {len(journal)} steps; expected 0 to {len(journal)}")
    return journal, count


def begins_at(journal: Journal, base: str, model: nn.Module, told: str = "") -> str:
    """The digest of `model`, which must be that of the journal's first weights."""
    found = digest(model)
    if found != journal.base_digest:
        raise JournalError(
            f"{base} is not the model this journal begins at: its weights have the digest {found}, the journal says "
            f"{journal.base_digest}{told}. Nothing was written"
        )
    return found


def applied(
    journal: Journal, model: nn.Module, count: int, out: Path, save_to: Callable[[Path], None], reporter: Reporter
) -> dict[str, Any]:
    """Replays `count` records and writes the model, if all of them lead to the journal's end; what is to be printed of it."""
    reporter.say(f"replaying {count} steps")
    trained = {n: t for n, t in named_tensors(model, trainable_only=False).items() if n in journal.layout}
    records = journal.records()
    replay_(trained, records[:count], journal.layout)
    reached = digest(model)
    verified = count == len(records) and _ends_well(journal, reached, reporter)
    if journal.left_out is not None:
        reporter.warn(f"{journal.path}: {journal.left_out}")

    def write(place: Path) -> None:
        nonlocal verified
        save_to(place)
        if count < len(records):
            # what was written leads to the journal's end, or it does not appear
            replay_(trained, records[count:], journal.layout)
            verified = _ends_well(journal, digest(model), reporter)

    make_folder(out.parent)
    write_whole(out, write)
    return {
        "schema": 1,
        "command": "replay",
        "journal": str(journal.path),
        "output": str(out),
        "steps": count,
        "finished": journal.finished,
        "exact": journal.exact,
        "digest": reached,
        "verified": verified,
    }


def _ends_well(journal: Journal, final: str, reporter: Reporter) -> bool:
    """Whether the weights after all records are those that the journal says.

    Raises:
        JournalError: they are not, though the journal is exact.
    """
    if journal.finished and final != journal.final_digest:
        if journal.exact:
            raise JournalError(
                f"the replay gave weights with the digest {final}, the journal says {journal.final_digest}; the journal does "
                "not belong to what was trained, or this is a defect: please report it. Nothing was written"
            )
        reporter.warn(
            "the run evaluated in place, which is not exact: the weights agree with the trained ones but for rounding"
        )
    return journal.finished and final == journal.final_digest
