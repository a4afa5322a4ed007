"""A small journal of every kind of record, for the tests of the file."""

from __future__ import annotations

from pathlib import Path

import torch

import blockzo as bz

LAYOUT = {"a.weight": 0, "b.weight": 1}


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(7, 9, generator=generator).to(dtype),
        "b.weight": torch.randn(300, generator=generator).to(dtype),
    }


def record(step: int) -> bz.Record:
    late = tuple(range(1 + step % 3)) if step % 2 else (5, 3)
    return bz.Record(
        step,
        (1 << 63) + step,
        "gaussian" if step % 2 else "rademacher",
        (
            bz.BlockUpdate((0,), (0.125 * step - 0.3,), lr=0.1, eps=1e-3, decay=1e-4 * step),
            bz.BlockUpdate(late, tuple(0.01 * (k + step) for k in late), lr=0.2, eps=1e-2),
        ),
        losses=(0.5, 0.25 + step),
        stochastic_rounding=step % 4 == 3,
    )


def write(path: Path, steps: int = 5, finish: bool = True) -> dict[str, torch.Tensor]:
    found = weights()
    with bz.Journal.create(path, bz.digest(found), LAYOUT, {"lr": [0.1, 0.2], "task": "sst2"}) as journal:
        for step in range(steps):
            journal.append(record(step))
            bz.replay_(found, [record(step)], LAYOUT)
            if step == 2:
                journal.add_digest(bz.digest(found))
        if finish:
            journal.finish(bz.digest(found))
    return found


def rebuild(path: Path) -> str:
    """What `blockzo replay` does: verify, replay, compare the digest."""
    journal = bz.Journal.open(path)
    journal.verify()
    found = weights()
    if journal.base_digest != bz.digest(found):
        raise bz.JournalError("wrong base")
    bz.replay_(found, journal.records(), journal.layout)
    if journal.final_digest != bz.digest(found):
        raise bz.JournalError("wrong result")
    return bz.digest(found)
