"""Operations for other projects' loops, against what such loops do today.

    python benchmarks/backend.py [--only seeds fill mezo] [--threads 1] [--rounds 7] [--no-save]

seeds  `update_` of 30 seeds in one pass against one by one, 100 M weights (Gaussian: 25 M).
fill   `fill_` against `Noise.sample`, 16 Mi numbers.
mezo   a step of examples/ports/mezo.py against the paper's loop in eager torch, 24 layers of 2,048 x 2,048, 4 rows.

CPU time of this process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import blockzo as bz
from benchmarks.comparison.eager import EagerMeZO
from benchmarks.harness import Table, paired, speedup
from benchmarks.parts import run

WEIGHTS, SEEDS, LR, EPS = 100_000_000, 30, 1e-6, 1e-3
KINDS = [
    (dtype, distribution) for dtype in (torch.float32, torch.bfloat16) for distribution in ("rademacher", "gaussian")
]


def seeds(table: Table, options: argparse.Namespace) -> None:
    for dtype, distribution in KINDS:
        # what a Gaussian number takes is its making, not the memory
        goal, count = (2.0, WEIGHTS) if distribution == "rademacher" else (None, WEIGHTS // 4)
        w = [torch.zeros(count, dtype=dtype)]
        noises, numbers = [bz.Noise(k, distribution) for k in range(SEEDS)], [1e-4 / SEEDS] * SEEDS

        def one_by_one(w=w, noises=noises, numbers=numbers) -> None:
            for noise, number in zip(noises, numbers, strict=True):
                bz.update_(w, noise, [number])

        sides = {"one pass": lambda w=w, n=noises, c=numbers: bz.update_(w, n, c), "one by one": one_by_one}
        times = paired(sides, rounds=options.rounds, warmup=1, clock=time.process_time)
        case = f"update_ 30 seeds, {count // 10**6} M {distribution} {str(dtype)[6:]}"
        table.add(case, "times faster than one by one", speedup(times, "one pass", "one by one"), "x", target=goal)


def fill(table: Table, options: argparse.Namespace) -> None:
    for distribution in ("rademacher", "gaussian"):
        out, noise = torch.empty(1 << 24), bz.Noise(1, distribution)
        sides = {"fill_": lambda o=out, n=noise: bz.fill_(o, n, "w"), "sample": lambda n=noise: n.sample("w", 1 << 24)}
        times = paired(sides, rounds=options.rounds, warmup=1, clock=time.process_time)
        table.add(
            f"fill_ {distribution}", "times faster than sample", speedup(times, "fill_", "sample"), "x", target=10.0
        )


def mezo(table: Table, options: argparse.Namespace) -> None:
    spec = spec_from_file_location("mezo", Path(__file__).resolve().parents[1] / "examples" / "ports" / "mezo.py")
    assert spec is not None and spec.loader is not None
    port = module_from_spec(spec)
    spec.loader.exec_module(port)
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(24)])
    x = torch.randn(4, 2048)
    eager = EagerMeZO(net, lambda model, batch: model(batch).square().mean(), LR, EPS, seed=1)
    sides = {
        "port": lambda: port.mezo_step(net, lambda: float(net(x).square().mean()), 1, LR, EPS),
        "eager": lambda: eager.step(x),
    }
    times = paired(sides, rounds=options.rounds, warmup=1, clock=time.process_time)
    table.add(
        "MeZO port, 100 M weights, 4 rows", "times faster than eager", speedup(times, "port", "eager"), "x", target=3.0
    )


PARTS = {"seeds": seeds, "fill": fill, "mezo": mezo}


if __name__ == "__main__":
    run("backend", __doc__, PARTS, rounds=7)
