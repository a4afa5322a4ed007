"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "blockzo", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}


def blockzo(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `blockzo` with these arguments in the repository."""
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=240, cwd=REPOSITORY, **options
    )
