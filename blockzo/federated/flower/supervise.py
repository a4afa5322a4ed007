"""Keeps a command running: it is started again when it ends, after a rest that grows.

A SuperNode that was killed is refused until its heartbeat has run out (about a minute); a SuperLink may be away for longer.
The command, and what it started, ends with this process, even when it is killed (guard.py).

    python -m blockzo.federated.flower.supervise flower-supernode --superlink HOST:PORT ...
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from blockzo.federated.flower.guard import Guard, end_group

log = logging.getLogger("blockzo.federated")

FIRST_REST, LONGEST_REST, STEADY = 1.0, 15.0, 60.0
"""Seconds: rests after an end double from the first to the longest; who ran steadily for so long begins at the first again."""


class Supervised:
    """A command that is kept running from a thread.

    Args:
        output: file that its output is added to; this process's where None. Its process id is kept beside it (.pid).

    Attributes: `starts`, how often it was started; `process`, the present or last one.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, output: Path | None = None
    ) -> None:
        self.command, self.environment, self.output = _with_end(command), environment, output
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Supervised:
        self._end_leftover()
        self._thread.start()
        return self

    def _end_leftover(self) -> None:
        """Ends the same command where it was left running by a supervisor that was killed (Linux)."""
        try:
            assert self.output is not None
            number = int(self.output.with_suffix(".pid").read_text())
            arguments = Path(f"/proc/{number}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except (AssertionError, OSError, ValueError):
            return
        # another process may have its number by now
        if self.command[1:] == arguments[-len(self.command) : -1]:
            log.warning("%s still runs as %d; it is ended", self.command[0], number)
            os.kill(number, signal.SIGKILL)
            end_group(number)

    def wait(self) -> None:
        while self._thread.is_alive():
            self._thread.join(1)

    def stop(self, seconds: float = 10) -> None:
        """Ends the command and stays with it until it is gone; kills it after so many seconds."""
        with self._lock:
            self._stopping.set()
            process = self.process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._thread.join()

    def _launch(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self.starts += 1
            guard = Guard.of_this_process()
            with contextlib.nullcontext() if self.output is None else open(self.output, "ab") as output:
                self.process = subprocess.Popen(
                    guard.command(self.command),
                    env=self.environment,
                    stdin=guard.writing,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            if self.output is not None:
                self.output.with_suffix(".pid").write_text(str(self.process.pid))
            return self.process

    def _run(self) -> None:
        rest = FIRST_REST
        while (process := self._launch()) is not None:
            began = time.monotonic()
            status = process.wait()
            # the app processes of a killed SuperNode do not always see that it is gone
            end_group(process.pid)
            Guard.of_this_process().ended(process.pid)
            if time.monotonic() - began > STEADY:
                rest = FIRST_REST
            if self._stopping.is_set():
                return
            log.warning("%s ended with status %d; again in %g s", self.command[0], status, rest)
            self._stopping.wait(rest)
            rest = min(2 * rest, LONGEST_REST)


def _with_end(command: Sequence[str]) -> list[str]:
    """A SuperNode's waits for content that was cut off get an end (waits.py)."""
    if command[0] == "flower-supernode":
        return [sys.executable, "-m", "blockzo.federated.flower.waits", *command]
    return list(command)


def main(command: Sequence[str]) -> None:
    if not command:
        sys.exit("expected a command: python -m blockzo.federated.flower.supervise COMMAND [ARGUMENT]...")
    logging.basicConfig(format="%(asctime)s %(message)s")
    supervised = Supervised(command)

    def end(number: int, frame: FrameType | None) -> None:
        # a thread, since the lock may be held where the signal came in
        threading.Thread(target=supervised.stop).start()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    supervised.start().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
