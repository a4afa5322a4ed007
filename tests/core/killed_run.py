"""A training run that test_kill.py kills: trains a small model, prints its digest at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import blockzo as bz
from tests.core import zoo

STEPS = 24


def main(path: str) -> None:
    torch.set_num_threads(1)
    model, batches = zoo.make("llama").to(torch.bfloat16), [zoo.batch(seed=s) for s in range(4)]
    blocks = bz.Blocks(model, [2])
    if Path(path).exists():
        journal = bz.Journal.resume(path)
    else:
        journal = bz.Journal.create(path, bz.digest(model), blocks.layout, {"steps": STEPS})
    zo = bz.ZO(
        model,
        method=bz.SPZO(1, 2),
        blocks=blocks,
        lr=lambda step: 1e-2 / (1 + step),
        weight_decay=0.01,
        stochastic_rounding=True,
        journal=journal,
    )
    print("ready", flush=True)
    while zo.step_number < STEPS:
        zo.step(batches[zo.step_number % 4])
    if not journal.finished:
        journal.finish(bz.digest(model))
    journal.verify()
    print(bz.digest(model), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
