"""Noise of a low rank: moved forwards against plain ones of the same rows, and updates against those of full rank.

    python benchmarks/lowrank.py [--only linear model update] [--layers 30] [--rank 4] [--threads 1] [--rounds 5] [--no-save]

linear  `perturbed_linear` of 4 directions and both signs, 16 x 64 tokens each, over F.linear of the same rows; shapes of
        SmolLM2-135M.
model   the eight losses of SPSA(4) as one batch over eight plain forwards, and over those of noise of full rank; a Llama of
        SmolLM2-135M's widths and so many layers, 16 x 64 tokens, loss of two label words at the last position.
update  `update_` of one and of eight directions over the same of full rank, 2,048 x 8,192.

CPU time of this process, which other work on the machine disturbs less. Each call of `linear` meets a weight that none just
before it has read.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

import blockzo as bz
from benchmarks.harness import Table, paired
from benchmarks.linear import cold, slower
from benchmarks.parts import run
from benchmarks.perturbed import llama_134m, plain_losses, small_batch
from benchmarks.step import last_token_loss
from blockzo.ops import perturbed_linear, update_
from blockzo.optim.executor import PerturbedExecutor

DIRECTIONS, EPS, GOAL = 4, 1e-3, 1.15
GROUPED = [k for k in range(DIRECTIONS) for _ in (1, -1)]
SCALES = [sign * EPS for _ in range(DIRECTIONS) for sign in (1, -1)]
SHAPES = [(576, 576), (192, 576), (1536, 576), (576, 1536)]


def linear(table: Table, options: argparse.Namespace) -> None:
    for rows, width in SHAPES:
        weight, x = cold(rows, width, torch.float32), torch.randn(len(GROUPED), 1024, width)
        for distribution in ("rademacher", "gaussian"):
            noise = bz.Noise(1, distribution, options.rank)
            times = paired(
                {
                    "plain": lambda weight=weight, x=x, width=width: F.linear(x.view(-1, width), weight()),
                    "moved": lambda weight=weight, x=x, noise=noise: perturbed_linear(
                        x, weight(), None, noise, 5, GROUPED, SCALES
                    ),
                },
                rounds=options.rounds,
                clock=time.process_time,
            )
            case = f"8 x 1024 tokens {rows} x {width} {distribution} rank {options.rank}"
            table.add(case, "moved over F.linear", slower(times, "moved", "plain"), "x", at_most=GOAL)


def model(table: Table, options: argparse.Namespace) -> None:
    made = llama_134m()
    made.model.layers = made.model.layers[: options.layers]  # type: ignore[union-attr, index]
    data, tree = small_batch(16, 64), bz.SPSA(DIRECTIONS).tree(1)

    def evaluation(rank: int | None) -> object:
        executor = PerturbedExecutor(bz.Blocks(made, []), bz.Noise(1, "rademacher", rank), [EPS], len(GROUPED))
        return lambda: executor.run(tree, lambda: last_token_loss(made, data))

    sides = {
        "plain": lambda: plain_losses(made, data, len(GROUPED)),
        "full": evaluation(None),
        "low": evaluation(options.rank),
    }
    times = paired(sides, rounds=options.rounds, warmup=1, clock=time.process_time)  # type: ignore[arg-type]
    case = f"Llama 134M, {options.layers} layers, 16 x 64, 8 losses, rank {options.rank}"
    table.add(case, "evaluation over plain forwards", slower(times, "low", "plain"), "x", at_most=GOAL)
    table.add(case, "evaluation over that of full rank", slower(times, "low", "full"), "x")


def update(table: Table, options: argparse.Namespace) -> None:
    weights = {"w": torch.randn(2048, 8192)}
    for count in (1, 8):
        for distribution in ("rademacher", "gaussian"):
            low, full = bz.Noise(1, distribution, options.rank), bz.Noise(1, distribution)
            times = paired(
                {
                    "full": lambda full=full, count=count: update_(weights, full, [EPS] * count),
                    "low": lambda low=low, count=count: update_(weights, low, [EPS] * count),
                },
                rounds=options.rounds,
                clock=time.process_time,
            )
            case = f"update_ {count} directions 16 Mi float32 {distribution} rank {options.rank}"
            table.add(case, "over full rank", slower(times, "low", "full"), "x")


PARTS = {"linear": linear, "model": model, "update": update}


if __name__ == "__main__":
    run("lowrank", __doc__, PARTS, rounds=5, layers=30, rank=4)
