"""Processes forked from one that has torch imported say how they end, as others do."""

from __future__ import annotations

import os
import signal

import pytest

from tests import warm
from tests.warm import Started

# imports torch and transformers in another process
pytestmark = pytest.mark.heavy


def test_output_arguments_and_variables() -> None:
    code = "import os, sys; print(sys.argv[1], os.environ['GIVEN'], 'HOME' in os.environ); print('Ü', file=sys.stderr)"
    done = warm.run(["-c", code, 7], {"GIVEN": "here"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 here False\n", "Ü\n")
    done = warm.run(["-m", "blockzo", "--version"])
    assert done.returncode == 0 and done.stdout.startswith("blockzo ")


@pytest.mark.parametrize(
    ("code", "ending", "said"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, ""),
    ],
)
def test_endings(code: str, ending: int, said: str) -> None:
    done = warm.run(["-c", code])
    assert done.returncode == ending and said in done.stderr


def test_it_runs_beside_this_process_and_hears_signals() -> None:
    process = Started(["-c", "import time; print('ready', flush=True); time.sleep(60)"])
    assert process.pid != os.getpid() and process.line(0) == "ready\n" and process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 1 and "KeyboardInterrupt" in process.communicate()[1]
    assert process.line(1) == ""
    process.send_signal(signal.SIGKILL)  # its number may be another's by now


def test_its_seconds_count() -> None:
    before = warm.spent
    code = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    assert warm.run(["-c", code]).returncode == 0
    assert 0.3 <= warm.spent - before < 3
