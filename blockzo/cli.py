"""The command `blockzo`. What a user can mend is one message on stderr and exit code 2, without a traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TextIO

STOPPED = 130
WRONG = 2
NEEDED = ("typer", "rich", "transformers", "safetensors")


def main() -> None:
    """Entry point of the console script; leaves with 0, with 2 after a message, or with 130 when stopped."""
    arguments = sys.argv[1:]
    missing = [name for name in NEEDED if find_spec(name) is None]
    if arguments[:1] == ["env"] and missing:
        # the one command that has to work in the barest install
        from blockzo import environment

        raise SystemExit(environment.main(json="--json" in arguments))
    if missing:
        fail(f"the command line needs {', '.join(missing)}; install with: pip install 'blockzo[finetune]'")
    warnings.showwarning = _show
    from blockzo.commands import app

    run(lambda: app(prog_name="blockzo"))


def run(action: Callable[[], object]) -> None:
    """Runs `action`; errors of the user's become messages. BLOCKZO_DEBUG=1 shows tracebacks."""
    from blockzo.finetune.errors import Interrupted

    try:
        action()
    except (KeyboardInterrupt, Interrupted):
        print("stopped", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except BrokenPipeError:
        # the reader of stdout went away; Python would complain once more when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        if os.environ.get("BLOCKZO_DEBUG"):
            raise
        fail(str(error))


def fail(text: str) -> None:
    from blockzo.outside import printable

    # it may quote a journal or a file that came from anyone
    print(printable(f"error: {text}"), file=sys.stderr)
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
