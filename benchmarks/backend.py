"""Operations for other projects' loops, against what such loops do today.

    python benchmarks/backend.py [--only seeds fill mezo scales momentum step] [--threads 1] [--rounds 7] [--no-save]

seeds  `update_` of 30 seeds in one pass against one by one, 100 M weights (Gaussian: 25 M).
fill   `fill_` against `Noise.sample`, 16 Mi numbers.
mezo   a step of examples/ports/mezo.py against the paper's loop in eager torch, 24 layers of 2,048 x 2,048, 4 rows.
scales  `update_` with a mask (bool) and with float32 scales, 100 M weights (Gaussian: 25 M): over the same without, and against
       noise in memory that is multiplied and added by torch.
momentum  the update of `ZOSGD` with a window of n steps, 100 M weights (Gaussian: 25 M), over that without momentum and over a
       velocity that is stored (in the dtype of the weights, kept by `update_` with decay, then subtracted by torch).
step   a step of `ZOSGD` with momentum over a window of 32 steps, over one without: a Llama of SmolLM2-135M's widths, 16 x 64
       tokens.

CPU time of this process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import blockzo as bz
from benchmarks.baselines.mezo import EagerMeZO
from benchmarks.harness import Table, paired, speedup
from benchmarks.linear import slower
from benchmarks.parts import run
from benchmarks.perturbed import llama_134m, small_batch
from benchmarks.step import last_token_loss
from blockzo.optim import ZOSGD

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


def scales(table: Table, options: argparse.Namespace) -> None:
    for dtype, distribution in KINDS:
        count = WEIGHTS if distribution == "rademacher" else WEIGHTS // 4
        w, noise, held = torch.zeros(count, dtype=dtype), bz.Noise(1, distribution), torch.rand(count)
        mask, z = held < 0.5, torch.empty_like(w)

        def in_memory(w=w, noise=noise, mask=mask, z=z) -> None:
            bz.fill_(z, noise, "0")
            w.add_(z.mul_(mask).mul_(-LR))

        sides = {
            "plain": lambda w=w, n=noise: bz.update_([w], n, [LR]),
            "mask": lambda w=w, n=noise, m=mask: bz.update_([w], n, [LR], per_weight={"0": m}),
            "scales": lambda w=w, n=noise, h=held: bz.update_([w], n, [LR], per_weight={"0": h}),
            "memory": in_memory,
        }
        times = paired(sides, rounds=options.rounds, warmup=1, clock=time.process_time)
        case = f"update_ {count // 10**6} M {distribution} {str(dtype)[6:]}"
        table.add(case, "with a mask over without", slower(times, "mask", "plain"), "x")
        table.add(case, "with float32 scales over without", slower(times, "scales", "plain"), "x")
        table.add(case, "with a mask: times faster than in memory", speedup(times, "mask", "memory"), "x")


def momentum(table: Table, options: argparse.Namespace) -> None:
    for dtype, distribution in KINDS:
        count = WEIGHTS if distribution == "rademacher" else WEIGHTS // 4
        w, velocity = torch.zeros(count, dtype=dtype), torch.zeros(count, dtype=dtype)

        def stored(w=w, velocity=velocity, distribution=distribution) -> None:
            bz.update_([velocity], bz.Noise(1, distribution), [-LR], decay=0.1)
            w.sub_(velocity)

        def window(n: int, w=w, distribution=distribution) -> Callable[[], None]:
            noises, numbers = [bz.Noise(k, distribution) for k in range(n)], [LR * 0.9**k for k in range(n)]
            return lambda: bz.update_([w], noises, numbers)

        sides = {"plain": window(1), "stored": stored, **{str(n): window(n) for n in (8, 16, 32)}}
        times = paired(sides, rounds=options.rounds, warmup=1, clock=time.process_time)
        for n in ("8", "16", "32"):
            case = f"momentum, window {n}, {count // 10**6} M {distribution} {str(dtype)[6:]}"
            table.add(case, "update over one without", slower(times, n, "plain"), "x")
            table.add(case, "update over a stored velocity", slower(times, n, "stored"), "x")


def step(table: Table, options: argparse.Namespace) -> None:
    model, data = llama_134m(), small_batch(16, 64)

    def closure() -> torch.Tensor:
        return last_token_loss(model, data)

    for distribution in ("rademacher", "gaussian"):
        held = {}
        for window in (1, 32):
            factor = 0.9 if window > 1 else 0.0
            held[window] = ZOSGD(
                model.named_parameters(), LR, momentum=factor, window=window, distribution=distribution, check=False
            )
            held[window].state["run"]["past"] = [[k, [[[0], [1e-3]]]] for k in range(window - 1)]
        sides = {str(window): lambda o=one: o.step(closure) for window, one in held.items()}
        times = paired(sides, rounds=options.rounds, warmup=1, clock=time.process_time)  # type: ignore[arg-type]
        case = f"step of ZOSGD, Llama 134M, 16 x 64, {distribution}"
        table.add(case, "window of 32 over none", slower(times, "32", "1"), "x")


PARTS = {"seeds": seeds, "fill": fill, "mezo": mezo, "scales": scales, "momentum": momentum, "step": step}


if __name__ == "__main__":
    run("backend", __doc__, PARTS, rounds=7)
