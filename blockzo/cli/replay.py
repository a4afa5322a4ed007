"""The command `blockzo replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from blockzo.cli import shared
from blockzo.cli.command import Command
from blockzo.cli.printing import show
from blockzo.integrations.model_notes import TRAINER


class ReplayCommand(Command):
    others = {"--model": "BASE", "--output": "OUT"}


def replay(
    base: Annotated[str, Argument(help="The model that the run began with.")],
    journal: Annotated[Path, Argument(help="Its journal.bz.")],
    out: Annotated[Path, Argument(help="New folder for the fine-tuned model.")],
    steps: Annotated[
        int | None, Option("--steps", min=0, help="The model after so many steps, not the last one.")
    ] = None,
    partial: Annotated[bool, Option("--partial", help="Allow a journal of a run that was not finished.")] = False,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    device: Annotated[str, Option("--device", help="auto, cpu, cuda or cuda:1; the result is the same.")] = "auto",
    as_json: shared.Json = False,
) -> None:
    """Rebuild a fine-tuned model from its base and its journal, bit for bit."""
    from blockzo.finetune.progress import reporter
    from blockzo.journal.file import Journal

    if TRAINER in Journal.open(journal).metadata:
        from blockzo.integrations.replay import replay as rebuilt
    else:
        from blockzo.finetune import replay as rebuilt
    result = rebuilt(base, journal, out, partial, reporter(), trust_remote_code, steps, device)
    checked = (
        "verified against the journal's digest" if result["verified"] else "not verified: the journal has no exact end"
    )
    text = f"{result['output']}: {result['steps']} steps replayed, weights {result['digest']} ({checked})"
    show(result, as_json, text)
