"""Directions of their own: `perturbed_linear` where every example of a batch is a group, and updates along many directions.

    python benchmarks/rows.py [--only linear models update] [--threads 1] [--rounds 9] [--no-save]

linear  2,048 x 2,048, 16 groups: time over torch's plain product of the same rows; 16-bit moves in float32 and rounded.
models  the shapes of SmolLM2-135M, 16 groups of 32 tokens.
update  `update_` along 64 directions over one direction, 128 Mi weights.

CPU time of this process, which other work on the machine disturbs less. Each call meets a weight that none just before it has
read.
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

from benchmarks.harness import Table, paired
from benchmarks.linear import cold, slower
from benchmarks.parts import run
from blockzo.noise import Noise
from blockzo.ops import perturbed_linear, update_

GROUPS, EPS = 16, 1e-3
KINDS = [(torch.float32, "rademacher"), (torch.float32, "gaussian"), (torch.bfloat16, "rademacher")]
GOALS = {KINDS[0]: 1.1, KINDS[1]: 1.6, KINDS[2]: 1.5}
SHAPES = [(576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576)]
MOST_AT_ONCE, WEIGHTS, DIRECTIONS = 8, 1 << 27, 64


def layer(table: Table, rounds: int, shape: tuple[int, int], tokens: int, goals: bool) -> None:
    for dtype, distribution in (*KINDS, (torch.bfloat16, "gaussian")):
        weight, x = cold(*shape, dtype), torch.randn(GROUPS, tokens, shape[1]).to(dtype)
        noise = Noise(1, distribution)

        def product(moved: str, weight=weight, x=x, noise=noise):  # type: ignore[no-untyped-def]
            return lambda: perturbed_linear(x, weight(), None, noise, 5, range(GROUPS), [EPS] * GROUPS, moved=moved)

        sides = {
            "plain": lambda weight=weight, x=x: F.linear(x.view(-1, shape[1]), weight()),
            "moved": product("float32"),
        }
        if dtype != torch.float32:
            sides["rounded"] = product("rounded")
        times = paired(sides, rounds=rounds, clock=time.process_time)
        case = f"{GROUPS} x {tokens} tokens {shape[0]} x {shape[1]} {str(dtype)[6:]} {distribution}"
        limit = GOALS.get((dtype, distribution)) if goals and tokens == 32 else None
        table.add(case, "own directions over F.linear", slower(times, "moved", "plain"), "x", at_most=limit)
        if "rounded" in times:
            found = slower(times, "rounded", "plain")
            table.add(case, "own directions, moves rounded, over F.linear", found, "x", at_most=limit)


def linear(table: Table, options: argparse.Namespace) -> None:
    for tokens in (8, 16, 32, 64, 128):
        layer(table, options.rounds, (2048, 2048), tokens, True)


def models(table: Table, options: argparse.Namespace) -> None:
    for shape in SHAPES:
        layer(table, max(3, options.rounds // 3) if shape[0] > 2048 else options.rounds, shape, 32, False)


def update(table: Table, options: argparse.Namespace) -> None:
    weights = {"w": torch.zeros(WEIGHTS)}
    coefficients = [EPS * (k + 1) for k in range(DIRECTIONS)]
    for distribution in ("rademacher", "gaussian"):
        noise = Noise(1, distribution)
        times = paired(
            {
                "one": lambda noise=noise: update_(weights, noise, coefficients[:1]),
                "many": lambda noise=noise: update_(weights, noise, coefficients),
            },
            rounds=max(3, options.rounds // 3),
            warmup=1,
            clock=time.process_time,
        )
        case = f"update_ {DIRECTIONS} directions {WEIGHTS >> 20} Mi float32 {distribution}"
        table.add(case, "over one direction", slower(times, "many", "one"), "x", at_most=MOST_AT_ONCE)


PARTS = {"linear": linear, "models": models, "update": update}


if __name__ == "__main__":
    run("rows", __doc__, PARTS, rounds=9)
