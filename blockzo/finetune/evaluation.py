"""`blockzo evaluate`: held-out scores of any model on a task."""

from __future__ import annotations

import time
from typing import Any

import torch

from blockzo.finetune.interrupt import Interrupts
from blockzo.finetune.metrics import measure
from blockzo.finetune.prepare import prepare
from blockzo.finetune.progress import Reporter
from blockzo.finetune.settings import Settings


def evaluate(
    settings: Settings, reporter: Reporter | None = None, fallback: str | None = None, base: str | None = None
) -> dict[str, Any]:
    """Scores `settings.model` on the held-out rows of its task; returns what `--json` prints.

    Args:
        base: where the model is a folder of an adapter alone, the model that it belongs to; else the one that it names.

    Raises: as `finetune`.
    """
    reporter = reporter or Reporter()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prepared = prepare(settings, reporter.say, fallback, training=False, base=base)
    for note in prepared.notes:
        reporter.warn(note)
    data = prepared.held_out
    rows = list(range(len(data.ids)))
    began = time.monotonic()
    with Interrupts() as interrupts:

        def progress(done: int, total: int) -> None:
            interrupts.check()
            reporter.evaluating(done, total)

        try:
            values = measure(prepared.model, prepared.scorer, data, rows, settings.batch, progress)
        finally:
            reporter.stop()
    return {
        "schema": 1,
        "command": "evaluate",
        "model": settings.model,
        "kind": prepared.loaded.kind,
        "device": str(prepared.loaded.device),
        "task": settings.task,
        "scores": prepared.scores(values, rows).as_dict(),
        "seconds": round(time.monotonic() - began, 3),
        "data": prepared.data_facts()["validation"],
        "warnings": prepared.notes,
    }
