"""The command `blockzo bench`."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from blockzo.cli import shared


def bench(
    context: typer.Context,
    name: Annotated[
        str | None, Argument(help="One file of benchmarks/, without .py; what follows it are its own options.")
    ] = None,
    quick: Annotated[
        bool, Option("--quick", help="README's figures in two minutes; what that cannot measure is said.")
    ] = False,
    only: Annotated[list[str] | None, Option(help="A claim by its name; may be repeated.")] = None,
    list_all: Annotated[bool, Option("--list", help="Claims and single benchmarks; nothing is run.")] = False,
    output: Annotated[
        Path | None, Option("--output", "-o", help="CSV that rows are put into by key; runs/bench/results.csv.")
    ] = None,
    no_save: Annotated[bool, Option("--no-save", help="Put rows nowhere.")] = False,
    plot: Annotated[Path | None, Option(help="Draw what was measured against what is committed.")] = None,
    as_json: shared.Json = False,
) -> None:
    """Measure what blockzo claims, and compare it with the committed figures; with NAME, run one benchmark.

    Exit code 1: a figure is outside of what is committed (docs/benchmarks.md).
    """
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    found = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    if not found:
        raise ValueError(
            f"{folder} holds no benchmarks; they are part of the repository, not of the installed package: run this command "
            "in a checkout"
        )
    words = [word for one in only or [] for word in ("--only", one)]
    flags = {"--quick": quick, "--list": list_all, "--no-save": no_save, "--json": as_json}
    words += [flag for flag, wanted in flags.items() if wanted]
    for option, path in (("--output", output), ("--plot", plot)):
        words += [] if path is None else [option, str(path)]
    if name is None:
        raise SystemExit(_carried_out(folder / "claims" / "__main__.py", words))
    if words:
        rest = "for several claims repeat --only" if only else "leave out the name to run claims"
        raise ValueError(
            f"{' '.join(words)} before the benchmark {name!r} is for claims; expected the benchmark's own options, after its "
            f"name; {rest}"
        )
    if name not in found:
        raise ValueError(f"benchmark is {name!r}; expected one of {', '.join(found)}")
    raise SystemExit(_carried_out(found[name], context.args))


def _carried_out(script: Path, words: Sequence[str]) -> int:
    """Its exit code. A stop is the script's to answer: it says what was measured before."""
    with subprocess.Popen([sys.executable, str(script), *words]) as child:
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            while True:
                # Ctrl-C reaches both
                with contextlib.suppress(KeyboardInterrupt):
                    return child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
