"""How a command ends: with 0, with 2 after one line that says what the user can mend, or with 130 when it was stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOPPED = 130
WRONG = 2


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
    except Exception as error:
        if hasattr(error, "format_message"):
            _wrong_usage(error)
        if os.environ.get("BLOCKZO_DEBUG") or not isinstance(error, (ValueError, OSError)):
            raise
        if isinstance(error, OSError):
            _close_stdout()
        fail(sentence(error) if isinstance(error, OSError) else str(error))


def _wrong_usage(error: Any) -> None:
    """An error of the parser (click's, of which newer typers bring a copy) as one line that says where help is."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        # with rich, making the error has printed it
        print(str(error.format_message()), end="")
        raise SystemExit(WRONG)
    text = " ".join(str(error.format_message()).split())
    fail(text + (f" (see {context.command_path} --help)" if context is not None else ""))


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
