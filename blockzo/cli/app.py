"""The commands of `blockzo`, one module each."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

import blockzo
from blockzo.cli import bench, demo, env, evaluate, finetune, replay, simulate
from blockzo.cli.command import Command

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"blockzo {blockzo.__version__}")
        raise typer.Exit


@app.callback()
def _blockzo(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="The version of blockzo, and nothing else.")
    ] = False,
) -> None:
    """Fine-tunes language models with forward passes only (docs/finetune.md)."""


app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(demo.demo)
app.command(cls=Command)(finetune.finetune)
app.command(cls=Command)(simulate.simulate)
app.command(cls=Command)(evaluate.evaluate)
app.command(cls=replay.ReplayCommand)(replay.replay)
app.command(cls=Command)(env.env)
app.command(cls=Command, context_settings={"allow_extra_args": True, "allow_interspersed_args": False})(bench.bench)
