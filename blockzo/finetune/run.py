"""One run: from settings to a fine-tuned model, its journal and its figures; and the same run continued after any kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockzo import Journal
from blockzo.finetune import output
from blockzo.finetune.errors import UserError
from blockzo.finetune.facts import RunFacts
from blockzo.finetune.loop import Training
from blockzo.finetune.models.devices import settled
from blockzo.finetune.prepare import prepare
from blockzo.finetune.progress import Reporter
from blockzo.finetune.report import write
from blockzo.finetune.resuming import resumed
from blockzo.finetune.settings import Settings


def finetune(
    settings: Settings, folder: Path, reporter: Reporter | None = None, fallback: str | None = None
) -> dict[str, Any]:
    """Runs from the beginning. `folder` must be empty or new; afterwards it holds model/, journal.bz and the rest.

    Returns:
        What summary.json holds.

    Raises:
        UserError, JournalError: see the message; the journal in `folder` is valid.
        Interrupted: after a signal; the run can be continued.
    """
    reporter = reporter or Reporter()
    output.check_folder(folder)
    settings = settled(replace(settings, eval_every=settings.interval))
    _threads(settings.threads)
    prepared = prepare(settings, reporter.say, fallback)
    training = Training(settings, folder, prepared, reporter)
    output.check_space(folder, training.bytes_needed())
    output.make_folder(folder)
    journal = Journal.create(
        folder / output.JOURNAL,
        base_digest=training.base_digest,
        layout=training.blocks.layout,
        metadata=training.header(),
        exact=not settings.in_place,
    )
    return training.go(journal, write)


def resume(
    folder: Path, given: Mapping[str, Any], reporter: Reporter | None = None, fallback: str | None = None
) -> dict[str, Any]:
    """Continues the run in `folder`; `given` are the settings that the user gave again.

    Raises: as `finetune`; UserError names what differs from the journal: settings, data or model.
    """
    reporter = reporter or Reporter()
    path = folder / output.JOURNAL
    if not path.is_file():
        raise UserError(f"{path} does not exist, so there is nothing to resume; start the run without --resume")
    journal = Journal.resume(path)
    try:
        if journal.left_out is not None:
            reporter.warn(f"{path}: {journal.left_out} and done again")
        facts = RunFacts.of(journal)
        settings = resumed(Settings.from_dict(facts.settings), given)
        settings = _with_source(settings, facts, given)
        if settings.steps < len(journal):
            raise UserError(f"the run has {len(journal)} steps already, --steps is {settings.steps}; give that or more")
        if journal.finished and settings.steps != len(journal):
            raise UserError(
                f"the run ended after {len(journal)} steps and cannot be made longer; start another from its model"
            )
        if "threads" not in given:
            settings = replace(settings, threads=facts.threads)
        _threads(settings.threads)
        prepared = prepare(settings, reporter.say, fallback)
        training = Training(settings, folder, prepared, reporter)
        training.check(journal, facts)
    except BaseException:
        journal.close()
        raise
    return training.go(journal, write)


def _threads(count: int | None) -> None:
    if count is not None:
        torch.set_num_threads(count)


def _with_source(settings: Settings, facts: RunFacts, given: Mapping[str, Any]) -> Settings:
    """The model that was really used: a fallback, where there was one, stays the same when the run continues."""
    source = facts.source or settings.model
    if "model" in given or Path(source).name.lower() == settings.model.lower():
        return settings
    return replace(settings, model=source)
