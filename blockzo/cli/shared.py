"""Options of several commands that are no settings of a run: where it goes, how it goes on, and how its result is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from blockzo.cli.config_file import read_config
from blockzo.finetune.option import MODEL, RUN

Json = Annotated[bool, Option("--json", help="The result as JSON on stdout; progress stays on stderr.")]
Fallback = Annotated[
    str | None,
    Option(help="Another model where a built-in one cannot be had (for demonstrations).", rich_help_panel=MODEL),
]
Output = Annotated[
    Path | None, Option("--output", "-o", help="New folder for everything; runs/TASK-METHOD-SEED.", rich_help_panel=RUN)
]
Resume = Annotated[bool, Option("--resume", help="Continue the run in --output.", rich_help_panel=RUN)]
Config = Annotated[
    str | None,
    Option(
        "--config",
        "-c",
        help="YAML file with options by name (lr: 1e-6); those on the command line win.",
        is_eager=True,
        callback=read_config,
        rich_help_panel=RUN,
    ),
]
