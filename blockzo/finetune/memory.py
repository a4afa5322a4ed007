"""Most memory over a stretch of work: what this process had resident, or on a GPU what torch had allocated there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


@dataclass
class Peak:
    """`nbytes`: the peak, once the stretch has ended; None where the system cannot tell (Linux can)."""

    nbytes: int | None = None


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Most bytes inside. There is one peak a process (or GPU), so stretches may follow each other but not be nested."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.nbytes = torch.cuda.max_memory_allocated(device)
        return
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
