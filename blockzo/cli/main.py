"""The command `blockzo`: what has to be there, and what runs it."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from typing import TextIO

from blockzo.cli.endings import fail, run

NEEDED = ("typer", "rich", "transformers", "safetensors")


def main() -> None:
    """Entry point of the console script; leaves with 0, with 2 after a message, or with 130 when stopped."""
    arguments = sys.argv[1:]
    missing = [name for name in NEEDED if find_spec(name) is None]
    if arguments[:1] == ["env"] and missing:
        # the one command that has to work in the barest install
        from blockzo.cli import environment

        raise SystemExit(environment.main(json="--json" in arguments))
    if missing:
        fail(f"the command line needs {', '.join(missing)}; install with: pip install 'blockzo[finetune]'")
    warnings.showwarning = _show
    from blockzo.cli.app import app

    def act() -> None:
        raise SystemExit(app(prog_name="blockzo", standalone_mode=False) or 0)

    run(act)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=sys.stderr)
