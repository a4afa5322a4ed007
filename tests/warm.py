"""Processes that begin with torch and transformers imported: forked from one that did so, as a start costs more than the test.

They are processes of their own, with their own numbers, signals and ends; what they lack is the start of an interpreter and
what a package does at exit. Tests that are about those use subprocess.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["torch", "torch._dynamo", "transformers.modeling_utils", "transformers.models.llama.modeling_llama", "accelerate"]
    + ["matplotlib.figure", "blockzo.cli.app", "blockzo.finetune.run", "blockzo.simulate"]
)


spent = 0.0
"""CPU seconds of those that ended by themselves and were waited for (tests/pace.py)."""


def _begin(words: Sequence[str], environment: Mapping[str, str], out: str, err: str, used: str) -> None:
    try:
        _run(words, environment, out, err)
    finally:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        Path(used).write_text(str(sum(usage.ru_utime + usage.ru_stime for usage in usages)))


def _run(words: Sequence[str], environment: Mapping[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        file = os.open(path, flags | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0), open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, what, *rest = words
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


class Started:
    """A process, with what subprocess.Popen has. `words`: as after `python`, either -m and a module or -c and code."""

    def __init__(self, words: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
        self.args = [str(word) for word in words]
        self.out, self.err, self.used = (tempfile.NamedTemporaryFile(prefix="warm-") for _ in range(3))
        given = dict(os.environ if environment is None else environment)
        names = [file.name for file in (self.out, self.err, self.used)]
        self.process = FORK.Process(target=_begin, args=(self.args, given, *names), daemon=True)
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            # it may end in between
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if not connection.wait([self.process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        global spent
        spent += float(_text(self.used) or 0)
        Path(self.used.name).write_text("")
        return code

    def line(self, number: int) -> str:
        """That line of the output, as soon as it is written; what there is of it once the process has ended."""
        while True:
            ended = self.poll() is not None
            lines = _text(self.out).splitlines(keepends=True)[number:]
            if ended or (lines and lines[0].endswith("\n")):
                return lines[0] if lines else ""
            time.sleep(0.005)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return _text(self.out), _text(self.err)


def _text(file: IO[bytes]) -> str:
    return Path(file.name).read_text(encoding="utf-8")


def run(
    words: Sequence[object], environment: Mapping[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with the output captured as text."""
    process = Started(words, environment)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)
