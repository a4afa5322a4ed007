"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import warm

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "blockzo", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}


def blockzo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `blockzo` with these arguments in the repository."""
    return warm.run(["-m", "blockzo", *arguments], environment())


def started(*arguments: object) -> warm.Started:
    """`blockzo` with these arguments, that runs."""
    return warm.Started(["-m", "blockzo", *arguments], environment())
