"""Operations that move weights, beside tensor.add_, which reads and writes them once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import blockzo as bz
from benchmarks.conftest import Timed
from blockzo.noise import stream_id
from blockzo.ops.backends import reference
from blockzo.ops.params import Target
from blockzo.ops.steps import Step, joined_steps, make_step

LARGE, SMALL, SIZE, EPS, LR = 1 << 24, 1 << 16, 1 << 20, 1e-3, 1e-6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS, FORMS = ("rademacher", "gaussian"), ("directions", "seeds", "rank 4")
Move = Callable[[Tensor], None]


def same(move: Move, mode: str, dtype: torch.dtype, steps: Sequence[Step]) -> None:
    """Raises unless it leaves the reference's bits."""
    found = torch.linspace(-1, 1, 5000).to(dtype).view(50, 100)
    expected = found.clone()
    move(found)
    target = [Target("w", stream_id("w"), expected)]
    steps = [step.of_shape((50, 100)) if step.rank else step for step in steps]
    if mode == "update":
        reference.replay_(target, steps)
    else:
        reference.perturb_(target, steps[0])
    if not torch.equal(found, expected):
        raise RuntimeError(f"{mode} {steps[0].distribution} {dtype} differs from the reference: nothing was timed")


def timed_move(
    timed: Timed, group: str, move: Move, mode: str, dtype: torch.dtype, steps: Sequence[Step], size: int = SIZE
) -> None:
    w = torch.zeros(1024, size // 1024, dtype=dtype)
    timed(group, lambda: move(w), lambda: same(move, mode, dtype, steps), moved=2 * w.nbytes)


def add(timed: Timed, group: str, size: int, dtype: torch.dtype) -> None:
    w = torch.zeros(size, dtype=dtype)
    timed(group, lambda: w.add_(EPS), lambda: None, base=True, moved=2 * w.nbytes)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", ["add_", *KINDS])
def test_perturb(timed: Timed, operation: str, dtype: str, size: int) -> None:
    group, kind = f"perturb_ {size >> 10} Ki {dtype}", DTYPES[dtype]
    if operation == "add_":
        return add(timed, group, size, kind)
    noise = bz.Noise(1, operation)
    steps = [make_step(noise, [0], [EPS])]
    timed_move(timed, group, lambda tensor: bz.perturb_({"w": tensor}, noise, EPS), "perturb", kind, steps, size)


each_number = pytest.mark.parametrize("number", [8, 64])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@each_number
@each_dtype
@pytest.mark.parametrize("operation", ["add_", *(f"{kind} {form}" for kind in KINDS for form in FORMS)])
def test_update(timed: Timed, operation: str, dtype: str, number: int) -> None:
    """Along many directions of one seed, of full and of low rank, and along one direction of each of many seeds."""
    distribution, _, form = operation.partition(" ")
    group, kind = f"update of {number} directions, {SIZE >> 10} Ki {dtype}", DTYPES[dtype]
    if operation == "add_":
        return add(timed, group, SIZE, kind)
    noise = bz.Noise(1, distribution, 4 if form == "rank 4" else None)
    seeds, numbers = [bz.Noise(k, distribution) for k in range(number)], [LR * (k + 1) for k in range(number)]
    steps = [make_step(noise, range(number), numbers)]
    if form == "seeds":
        steps = joined_steps(seeds, [0] * number, numbers, 1.0, False)

    def move(tensor: Tensor) -> None:
        bz.update_({"w": tensor}, seeds if form == "seeds" else noise, numbers)

    timed_move(timed, group, move, "update", kind, steps)


@each_number
@each_dtype
@pytest.mark.parametrize("operation", ["add_", *KINDS])
def test_replay(timed: Timed, operation: str, dtype: str, number: int) -> None:
    """Rounded at every record."""
    group, kind = f"replay of {number} records, {SIZE >> 10} Ki {dtype}", DTYPES[dtype]
    if operation == "add_":
        return add(timed, group, SIZE, kind)
    records = [bz.Record(k, k, operation, (bz.BlockUpdate((0,), (LR * (k + 1),)),)) for k in range(number)]
    steps = [make_step(bz.Noise(k, operation), (0,), records[k].blocks[0].coefficients) for k in range(number)]
    timed_move(timed, group, lambda tensor: bz.replay_({"w": tensor}, records), "update", kind, steps)


@pytest.mark.parametrize("operation", ["zero_", *KINDS])
def test_fill(timed: Timed, operation: str) -> None:
    group, out = f"fill_ {LARGE >> 10} Ki", torch.empty(LARGE)
    if operation == "zero_":
        return timed(group, out.zero_, lambda: None, base=True, moved=out.nbytes)
    noise = bz.Noise(1, operation)

    def check() -> None:
        if not torch.equal(bz.fill_(torch.empty(5000), noise, "w"), noise.sample("w", 5000)):
            raise RuntimeError(f"fill_ {operation} differs from the reference: nothing was timed")

    timed(group, lambda: bz.fill_(out, noise, "w"), check, moved=out.nbytes)
