"""The command `blockzo`. What a user can mend is one message on stderr and exit code 2, without a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

STOPPED = 130
WRONG = 2
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
    from blockzo.cli.commands import app

    run(lambda: app(prog_name="blockzo"))


def run(action: Callable[[], object]) -> None:
    """Runs `action`; errors of the user's become messages. BLOCKZO_DEBUG=1 shows tracebacks."""
    from blockzo.finetune.errors import Interrupted, sentence
    from blockzo.finetune.interrupt import stopped_by_signals

    # a path may hold what the terminal cannot show; that must not undo what was done
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with stopped_by_signals():
            try:
                action()
            finally:
                sys.stdout.flush()
    except (KeyboardInterrupt, Interrupted):
        tell("stopped")
        raise SystemExit(STOPPED) from None
    except BrokenPipeError:
        _close_stdout()
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        if os.environ.get("BLOCKZO_DEBUG"):
            raise
        if isinstance(error, OSError):
            _close_stdout()
        fail(sentence(error) if isinstance(error, OSError) else str(error))


def stoppable(command: str, folder: Path, as_json: bool, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `action` returns; where it is stopped, says how to continue (the run in `folder`) and leaves."""
    from blockzo.finetune.errors import Interrupted
    from blockzo.finetune.output import JOURNAL

    try:
        return action()
    except (Interrupted, KeyboardInterrupt):
        begun = (folder / JOURNAL).is_file()
        again = f"blockzo {command} --resume --output {shlex.quote(str(folder))}" if begun else None
        kept = f"what was reported is kept. Continue with: {again}" if begun else "there is nothing to continue"
        tell(f"stopped; {kept}")
        if as_json:
            print(json.dumps({"schema": 1, "command": command, "interrupted": True, "resume": again}), flush=True)
        raise SystemExit(STOPPED) from None


def tell(text: str) -> None:
    """A line on stderr, which may be gone with its terminal."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _close_stdout() -> None:
    """What stdout still holds cannot be written; Python would complain once more when it closes it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(text: str) -> None:
    from blockzo.journal.outside import printable

    # it may quote a journal or a file that came from anyone
    tell(printable(f"error: {text}"))
    raise SystemExit(WRONG)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=sys.stderr)
