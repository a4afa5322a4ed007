"""Most memory that this process had resident over a stretch of its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROCESS = Path("/proc/self")


@dataclass
class Peak:
    """`nbytes`: the peak, once the stretch has ended; None where the system cannot tell (Linux can)."""

    nbytes: int | None = None


@contextmanager
def peak() -> Iterator[Peak]:
    """Most bytes resident inside. The system keeps one peak a process, so stretches may follow each other but not be nested."""
    found = Peak()
    known = False
    with suppress(OSError):
        # forgets earlier peaks; what is resident now counts
        (PROCESS / "clear_refs").write_text("5")
        known = True
    yield found
    if known:
        with suppress(OSError):
            lines = (PROCESS / "status").read_text().splitlines()
            found.nbytes = next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
