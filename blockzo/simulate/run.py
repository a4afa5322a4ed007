"""A simulation: hundreds of virtual clients in one process, from settings to a model, a journal and curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from blockzo.federated.server.hooks import Hooks
from blockzo.finetune import output
from blockzo.finetune.errors import UserError
from blockzo.finetune.facts import RunFacts
from blockzo.finetune.models.devices import settled
from blockzo.finetune.prepare import prepare
from blockzo.finetune.progress import Reporter
from blockzo.finetune.settings import Settings
from blockzo.journal.file import Journal
from blockzo.methods.auto import Auto
from blockzo.simulate.partitioner import owners
from blockzo.simulate.report import write
from blockzo.simulate.rounds import Simulation
from blockzo.simulate.settings import Federation, resumed


def simulate(
    settings: Settings,
    federation: Federation,
    folder: Path,
    reporter: Reporter | None = None,
    fallback: str | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Runs from the beginning; `settings.steps` are rounds. `folder` must be empty or new.

    Args:
        hooks: functions of one's own that are called after rounds; metrics stand in the lines of metrics.jsonl.

    Returns:
        What summary.json holds.

    Raises:
        UserError, JournalError: see the message.
        Interrupted: after a signal; a run with engine "zo" can be continued.
    """
    reporter = reporter or Reporter()
    settings = settled(settings)
    planned = isinstance(settings.estimator(), Auto)
    if settings.in_place or (planned and federation.engine == "fedavg"):
        raise UserError(
            "simulate runs on weights that are not written, and --engine fedavg without a planner; leave out --in-place, or "
            "--method auto"
        )
    if hooks is not None and federation.engine == "fedavg":
        raise UserError("hooks are called after rounds of scalars; leave them out with the engine fedavg")
    if federation.engine == "fedavg" and (
        settings.per_example or settings.rank is not None or settings.moved != "auto"
    ):
        raise UserError(
            "--engine fedavg backpropagates and moves no weight; leave out --per-example, --rank and --moved"
        )
    output.check_folder(folder)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prepared = prepare(settings, reporter.say, fallback, owners=owners(federation))
    return Simulation(settings, federation, folder, prepared, reporter, hooks).go(None, write)


def resume(
    folder: Path,
    reporter: Reporter | None = None,
    fallback: str | None = None,
    given: Mapping[str, Any] | None = None,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Continues the simulation in `folder`, to the bits of one that was not stopped; `given` are the fields of Settings and
    Federation that the user gave again.

    Raises: as `simulate`; UserError names what differs from the journal: settings, data or model.
    """
    reporter = reporter or Reporter()
    path = folder / output.JOURNAL
    if not path.is_file():
        raise UserError(f"{path} does not exist, so there is nothing to resume; start the simulation without --resume")
    journal = Journal.open(path)
    facts = RunFacts.of(journal)
    told = facts.simulation
    if told is None:
        raise UserError(f"{path} is not the journal of a simulation; continue it with blockzo finetune --resume")
    before = Settings.from_dict(told.get("settings", {})), Federation.from_dict(told.get("federation", {}))
    settings, federation = resumed(*before, given or {})
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prepared = prepare(settings, reporter.say, fallback, owners=owners(federation))
    return Simulation(settings, federation, folder, prepared, reporter, hooks).go(journal, write)
