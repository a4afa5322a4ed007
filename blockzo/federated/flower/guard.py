"""Commands end with the process that started them, however it ended (SIGKILL too).

A small process holds one end of a pipe and reads which process groups began; when nobody holds the other end any more, it kills
those that are left. A command writes its own group there before it becomes what it is, so that none is missed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

REGISTER = 'echo "+$$" >&0; exec "$@" < /dev/null'
"""Of a shell whose standard input is the pipe's end for writing."""


class Guard:
    """The way to this process's guard, which is started at first use."""

    _lock = threading.Lock()
    _one: Guard | None = None

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=reading, stdout=subprocess.DEVNULL, start_new_session=True
        )
        os.close(reading)

    @classmethod
    def of_this_process(cls) -> Guard:
        with cls._lock:
            if cls._one is None or cls._one.process.poll() is not None:
                if cls._one is not None:
                    os.close(cls._one.writing)
                cls._one = Guard()
            return cls._one

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that registers itself and becomes `command`; its standard input must be `writing`, and it must begin a
        session."""
        return ["/bin/sh", "-c", REGISTER, "sh", *command]

    def ended(self, group: int) -> None:
        """Its number may now be another's."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.writing, f"-{group}\n".encode())


def end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        change, number = line[:1], int(line[1:])
        groups.add(number) if change == b"+" else groups.discard(number)
    for group in groups:
        end_group(group)


if __name__ == "__main__":
    main()
