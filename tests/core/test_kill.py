"""SIGKILL at random moments: every resumed run ends with the bits, and the file, of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import blockzo as bz
from tests.warm import Started

# starts and kills processes
pytestmark = pytest.mark.heavy


def start(path: Path) -> Started:
    return Started(["-m", "tests.core.killed_run", path], {**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_runs_resume_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    begin = time.monotonic()
    assert whole.line(0) == "ready\n"
    ready = time.monotonic()
    digest = whole.line(1).strip()
    training = time.monotonic() - ready
    assert whole.wait() == 0 and digest.startswith("bz1-")
    choose = random.Random(kills)
    done, interrupted = 0, 0
    while done < kills:
        path = tmp_path / f"killed{done}"
        finished = False
        while not finished and done < kills:
            run = start(path)
            if choose.random() < 0.2:
                time.sleep(choose.random() * (ready - begin))
            else:
                run.line(0)
                time.sleep(choose.random() * training * 0.8)
            run.send_signal(signal.SIGKILL)
            finished = run.wait() == 0
            done += 1
            interrupted += not finished
        end = start(path)
        assert end.communicate()[0].split() == ["ready", digest]
        assert end.wait() == 0
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()
        assert bz.Journal.open(path).final_digest == digest
    assert interrupted > 0.5 * kills
