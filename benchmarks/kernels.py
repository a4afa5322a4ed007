"""Speed of the CPU kernels: `perturb_` against tensor.add_ and against the eager way, `replay_` against one update at a time.

    python benchmarks/kernels.py [--isa avx2] [--threads 2] [--only replay] [--no-save]

Every operation is compared with the reference, bit for bit, before it is timed: no speed is printed for wrong numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import blockzo as bz
from benchmarks.harness import Spread, Table, paired, speedup
from blockzo import _native
from blockzo.ops.backends import cpu, reference
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step

SIZE = 1 << 26
REPLAY_SIZE, REPLAY_STEPS = 1 << 24, 1000
EPS = 1e-3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AGAINST_ADD = {("rademacher", "float32"): 0.95, ("rademacher", "bfloat16"): 0.85, ("gaussian", "float32"): 0.27}
AGAINST_EAGER = {"rademacher": 40.0, "gaussian": 10.0}


def check(distribution: str, dtype: torch.dtype) -> None:
    """Raises RuntimeError unless the kernels give the reference's bits."""
    w = torch.linspace(-1, 1, (1 << 16) + 77).to(dtype)
    noise = bz.Noise(3, distribution)
    steps = [make_step(noise, [k], [EPS]) for k in range(20)]
    for name, arguments in (("perturb_", steps[0]), ("replay_", steps[:1]), ("replay_", steps)):
        found, expected = w.clone(), w.clone()
        getattr(cpu, name)([Target("w", 9, found)], arguments)
        getattr(reference, name)([Target("w", 9, expected)], arguments)
        if not torch.equal(found, expected):
            raise RuntimeError(f"{name} {distribution} {dtype} differs from the reference: nothing was timed")


def against_add(table: Table, distribution: str, dtype: str, rounds: int) -> None:
    check(distribution, DTYPES[dtype])
    w, noise = torch.zeros(SIZE, dtype=DTYPES[dtype]), bz.Noise(1, distribution)
    times = paired(
        {"perturb_": lambda: bz.perturb_({"w": w}, noise, EPS), "add_": lambda: w.add_(EPS)}, rounds=rounds, warmup=3
    )
    case = f"perturb_ {distribution} {dtype}"
    table.add(
        case, "speed relative to add_", speedup(times, "perturb_", "add_"), "x", AGAINST_ADD.get((distribution, dtype))
    )
    moved = 2 * w.numel() * w.element_size()
    for side, seconds in times.items():
        rate = Spread.of([w.numel() / s for s in seconds])
        table.add(case, f"{side} weights", scaled(rate, 1e-9), "G/s")
        table.add(case, f"{side} traffic", scaled(rate, moved / w.numel() * 1e-9), "GB/s")


def scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.p20 * factor, spread.p50 * factor, spread.p80 * factor, spread.rounds)


def against_eager(table: Table, rounds: int) -> None:
    w = torch.zeros(SIZE)

    def normal() -> Tensor:
        return w.add_(torch.normal(0.0, 1.0, w.shape) * EPS)

    def signs() -> Tensor:
        return w.add_((torch.randint(0, 2, w.shape, dtype=torch.float32) * 2 - 1) * EPS)

    sides: dict[str, Callable[[], object]] = {"normal": normal, "signs": signs}
    for distribution in AGAINST_EAGER:
        check(distribution, torch.float32)
        noise = bz.Noise(1, distribution)
        sides[distribution] = lambda n=noise: bz.perturb_({"w": w}, n, EPS)  # type: ignore[misc]
    times = paired(sides, rounds=rounds, warmup=1)
    for distribution, target in AGAINST_EAGER.items():
        case = f"perturb_ {distribution} float32"
        table.add(case, "times faster than torch.normal", speedup(times, distribution, "normal"), "x", target)
    table.add(
        "perturb_ rademacher float32", "times faster than torch.randint", speedup(times, "rademacher", "signs"), "x"
    )


def replay(table: Table, distribution: str, rounds: int, size: int, steps: int) -> None:
    check(distribution, torch.float32)
    together, apart = torch.zeros(size), torch.zeros(size)
    records = [bz.Record(k, 1000 + k, distribution, (bz.BlockUpdate((0,), (EPS * (-1) ** k,)),)) for k in range(steps)]

    def one_by_one() -> None:
        for record in records:
            (part,) = record.blocks
            bz.update_({"w": apart}, bz.Noise(record.seed, distribution), part.coefficients, part.directions)

    times = paired(
        {"replay_": lambda: bz.replay_({"w": together}, records), "update_": one_by_one}, rounds=rounds, warmup=1
    )
    if not torch.equal(together, apart):
        raise RuntimeError("replay_ and single updates gave different bits")
    case = f"replay_ {steps} {distribution} float32"
    table.add(
        case,
        "times faster than one by one",
        speedup(times, "replay_", "update_"),
        "x",
        3.0 if distribution == "rademacher" else None,
    )
    rate = Spread.of([size * steps / s for s in times["replay_"]])
    table.add(case, "weights x directions", scaled(rate, 1e-9), "G/s")


def call(table: Table, rounds: int, calls: int = 1000) -> None:
    """A linear layer so small that the way to the kernel is most of it: through torch's dispatcher against straight to it."""
    x, weight = torch.randn(1, 1, 64), torch.randn(64, 64)
    step = make_step(bz.Noise(1), [0], [EPS])

    def registered() -> None:
        for _ in range(calls):
            torch.ops.blockzo.perturbed_linear(x, weight, None, 0, 7, 1, "rademacher", [0], [EPS])

    def straight() -> None:
        for _ in range(calls):
            cpu.perturbed_linear(x, weight, None, 0, step, 7)

    times = paired({"registered": registered, "straight": straight}, rounds=rounds, warmup=1)
    more = [(a - b) / calls * 1e6 for a, b in zip(times["registered"], times["straight"], strict=True)]
    table.add("perturbed_linear 64 x 64, 1 token", "a registered operation costs a call", Spread.of(more), "us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--isa", choices=_native.available(), help="instruction set; the best of this CPU where left out"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=("add", "eager", "replay", "call"), help="one of the parts")
    parser.add_argument("--no-save", action="store_true", help="print, and leave results.csv as it is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.isa:
        _native.choose(options.isa)
    best = _native.chosen() == _native.available()[0]
    table = Table("kernels" if best else f"kernels {_native.chosen()}")
    print(f"{table.machine}; {options.threads} threads, {_native.chosen()}")
    if options.only in (None, "add"):
        for distribution in ("rademacher", "gaussian"):
            for dtype in DTYPES:
                against_add(table, distribution, dtype, options.rounds)
    if options.only in (None, "eager"):
        against_eager(table, max(3, options.rounds // 3))
    if options.only in (None, "replay"):
        replay(table, "rademacher", max(3, options.rounds // 3), REPLAY_SIZE, REPLAY_STEPS)
        replay(table, "gaussian", max(3, options.rounds // 5), REPLAY_SIZE, 50)
    if options.only in (None, "call"):
        call(table, options.rounds)
    if not options.no_save:
        table.save()


if __name__ == "__main__":
    main()
