"""The command `blockzo bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from blockzo.cli import shared
from blockzo.cli.printing import show


def bench(
    context: typer.Context,
    name: Annotated[str | None, Argument(help="A file of benchmarks/ without .py; none lists them.")] = None,
    as_json: shared.Json = False,
) -> None:
    """Run a benchmark of the repository's benchmarks/ folder; further arguments go to it."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    found = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    if not found:
        raise ValueError(f"{folder} holds no benchmarks; they are part of the repository, not of the installed package")
    if name is None:
        show({"benchmarks": list(found)}, as_json, "\n".join(found))
        return
    if name not in found:
        raise ValueError(f"benchmark is {name!r}; expected one of {', '.join(found)}")
    raise SystemExit(subprocess.run([sys.executable, str(found[name]), *context.args]).returncode)
