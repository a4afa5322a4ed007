"""The parts of `python benchmarks/baselines.py`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time as clock
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import upstream
from benchmarks.baselines.sides import SIDES
from benchmarks.harness import Spread, Table, paired
from benchmarks.shapes.models import SHAPES, batch, build, language_loss

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2
Batch = dict[str, Tensor]


def case(options: argparse.Namespace, side: str) -> str:
    return f"{SHAPES[options.model].case} {options.batch[0]} x {options.batch[1]}, {side}"


def forward(model: nn.Module, data: Batch) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            float(language_loss(model, data))

    return run


def time(table: Table, options: argparse.Namespace) -> None:
    shape = SHAPES[options.model]
    for name in options.sides:
        model, data = build(shape), batch(shape, *options.batch)
        # the side may wrap or freeze its model; the plain forward keeps to one of its own
        plain, side = forward(build(shape), data), SIDES[name](model, language_loss)
        sides = {"forward": plain, "step": lambda side=side, data=data: side.step(data)}
        times = paired(sides, options.rounds, warmup=1, clock=clock.process_time)
        ratios = [a / b for a, b in zip(times["step"], times["forward"], strict=True)]
        table.add(case(options, name), "CPU seconds of a step over a plain forward", Spread.of(ratios), "x")


def memory(table: Table, options: argparse.Namespace) -> None:
    plain = peak(options, "inference")
    for name in options.sides:
        table.add(case(options, name), "peak RSS over inference", Spread.of([peak(options, name) / plain]), "x")


def peak(options: argparse.Namespace, what: str) -> int:
    """Bytes, of a process of its own."""
    given = ["--model", options.model, "--batch", *map(str, options.batch), "--peak", what]
    command = [sys.executable, str(ROOT / "benchmarks" / "baselines.py"), *given]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run_for_peak(options: argparse.Namespace) -> None:
    shape = SHAPES[options.model]
    model, data = build(shape), batch(shape, *options.batch)
    # what building the model took at its worst must not hide what running it takes
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(STEPS):
        forward(model, data)()
    if options.peak != "inference":
        side = SIDES[options.peak](model, language_loss)
        for _ in range(STEPS):
            side.step(data)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10)


def seen(model: nn.Module) -> nn.Module:
    """With attention as products that FlopCounterMode sees; of the fused one on a CPU it knows nothing."""
    model.set_attn_implementation("eager")  # type: ignore[operator]
    return model


def flops(table: Table, options: argparse.Namespace) -> None:
    shape = SHAPES[options.model]
    data = batch(shape, *options.batch)
    with FlopCounterMode(display=False) as counter:
        forward(seen(build(shape)), data)()
    plain = counter.get_total_flops()
    for name in options.sides:
        side = SIDES[name](seen(build(shape)), language_loss)
        with FlopCounterMode(display=False) as counter:
            side.step(data)
        found = side.flops() if side.flops else counter.get_total_flops()
        table.add(case(options, name), "GFLOP a step", Spread.of([found / 1e9]), "GFLOP")
        table.add(case(options, name), "FLOPs of a step over a plain forward", Spread.of([found / plain]), "x")


def sent(table: Table, options: argparse.Namespace) -> None:
    shape = SHAPES[options.model]
    for name in options.sides:
        found = SIDES[name](build(shape), language_loss).sent
        table.add(case(options, name), "bytes up a round", Spread.of([found]), "bytes")


def beside_upstream(table: Table, options: argparse.Namespace) -> None:
    """A checkout's step, the baseline's of this repository and blockzo's, in turns."""
    shape = SHAPES[options.model]
    data = batch(shape, *options.batch)
    for given in options.upstream:
        name, _, path = given.partition("=")
        ours, eager = upstream.BESIDE[name]
        with upstream.Checkout(name, Path(path), options.model, *options.batch) as checkout:
            steps = {side: SIDES[side](build(shape), language_loss) for side in (ours, eager)}
            # a process answers with its own seconds: what it took to say so is not in them
            seconds = {"upstream": checkout.step, **{side: own_seconds(steps[side].step, data) for side in steps}}
            found: dict[str, list[float]] = {side: [] for side in seconds}

            def run(side: str, seconds=seconds, found=found) -> Callable[[], None]:  # type: ignore[no-untyped-def]
                return lambda: found[side].append(seconds[side]())

            paired({side: run(side) for side in seconds}, options.rounds, warmup=1)
        times = {side: values[1:] for side, values in found.items()}
        for side in (ours, eager):
            ratios = [a / b for a, b in zip(times["upstream"], times[side], strict=True)]
            told = f"{upstream.NAMES[name]} at {checkout.commit}"
            table.add(case(options, told), f"times the CPU seconds of {side}", Spread.of(ratios), "x")


def own_seconds(step: Callable[[Batch], object], data: Batch) -> Callable[[], float]:
    def run() -> float:
        begin = clock.process_time()
        step(data)
        return clock.process_time() - begin

    return run


PARTS = {"bytes": sent, "flops": flops, "memory": memory, "time": time}
