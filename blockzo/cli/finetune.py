"""The command `blockzo finetune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from blockzo.cli import shared
from blockzo.cli.command import options_from, those_of, typed
from blockzo.cli.endings import stoppable
from blockzo.cli.printing import scores, show
from blockzo.finetune.option import FINETUNE, RUN
from blockzo.finetune.settings import Settings


@options_from(Settings, command=FINETUNE)
def finetune(
    context: typer.Context,
    config: shared.Config = None,
    output: shared.Output = None,
    resume: shared.Resume = False,
    dry_run: Annotated[
        bool,
        Option("--dry-run", help="Print blocks, FLOPs, memory and time of a step; write nothing.", rich_help_panel=RUN),
    ] = False,
    fallback_model: shared.Fallback = None,
    as_json: shared.Json = False,
    **chosen: Any,
) -> None:
    """Fine-tune a model on a task by forward passes; writes the model, a small journal and a report."""
    from blockzo import finetune as tuning
    from blockzo.finetune.plan import describe
    from blockzo.finetune.progress import reporter

    folder = output or Path("runs") / f"{chosen['task']}-{chosen['method']}-{chosen['seed']}"
    if resume:
        again = those_of(Settings, typed(context))
        result = stoppable(FINETUNE, folder, as_json, lambda: tuning.resume(folder, again, reporter(), fallback_model))
    else:
        settings = Settings(**chosen)
        if dry_run:
            plan = tuning.dry_run(settings, reporter(), fallback_model)
            show(plan, as_json, describe(plan))
            return
        result = stoppable(
            FINETUNE, folder, as_json, lambda: tuning.finetune(settings, folder, reporter(), fallback_model)
        )
    show(result, as_json, told(result, metrics(Path(result["files"]["metrics"]))))


def told(result: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """The result in a few lines, and what it means.

    Args:
        lines: those of metrics.jsonl.
    """
    from blockzo.finetune.closing import closing

    found = [
        f"before  {scores(result['before'])}",
        f"after   {scores(result['after'])}",
        f"{result['steps']} steps, {result['flops']:.3g} forward FLOPs, {result['seconds']:.0f} s; "
        f"journal {result['journal_bytes'] / 1000:.1f} KB for {result['parameters']:,} weights",
        _signal(result["signal"]),
        *(f"{name:<7} {path}" for name, path in result["files"].items()),
        "",
        closing(result, lines),
    ]
    return "\n".join(found)


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _signal(values: dict[str, float | None]) -> str:
    moved = "" if values["unmoved"] is None else f"an update moves {1 - values['unmoved']:.1%} of the weights"
    ratio = "" if values["snr"] is None else f"the losses of a step differ by {values['snr']:.3g} roundings (median); "
    return ratio + moved
