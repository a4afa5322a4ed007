"""Several processes that must all end well, as the ranks of one group."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_together(commands: Sequence[Sequence[str]], folder: Path, seconds: float = 280) -> None:
    """Starts them all in the repository; fails with what they said unless every one ends with 0."""
    outputs = [(folder / f"rank{rank}.txt").open("w+") for rank in range(len(commands))]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        for command, out in zip(commands, outputs, strict=True)
    ]
    try:
        codes = [process.wait(timeout=seconds) for process in running]
    finally:
        for process in running:
            process.kill()
        texts = []
        for out in outputs:
            out.seek(0)
            texts.append(out.read())
            out.close()
    assert codes == [0] * len(commands), "\n".join(texts)
