"""Every kernel on every instruction set, dtype and distribution, ragged sizes, any number of threads: the reference's bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockzo import _native
from blockzo.noise import Noise, noise_range
from blockzo.ops import panels
from blockzo.ops.backends import cpu, reference, registry
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, FACTOR, SEED, changes, expected, isa, same_bits, threads, weights

SIZES = (0, 1, 2, 7, 127, 128, 129, 255, 640, 1000, 2047, 2048, 2049, 4097)
STREAMS = [0, 0xFFFFFFFF, *range(17, 17 + len(SIZES) - 2)]
GUARD = 64


def test_the_plain_kernels_are_there() -> None:
    assert "baseline" in _native.available()
    named = registry.BACKENDS["cpu"].switches["BLOCKZO_ISA"].removeprefix("one instruction set: ").split(", ")
    assert set(_native.available()) <= set(_native.compiled()) <= set(panels.TILE_TOKENS) == set(named)
    assert _native.chosen() in _native.available()


def fenced(values: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of `values` between guard bands, at an address that is no multiple of a vector; and the whole buffer."""
    buffer = torch.full((values.numel() + 2 * GUARD + 1,), 1234.5, dtype=values.dtype)
    inside = buffer[GUARD + 1 : GUARD + 1 + values.numel()]
    inside.copy_(values)
    return inside, buffer


def untouched(buffer: Tensor, size: int) -> bool:
    return bool((buffer[: GUARD + 1] == 1234.5).all() and (buffer[GUARD + 1 + size :] == 1234.5).all())


@pytest.mark.parametrize("name", list(changes("gaussian")))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(isa: str, dtype: torch.dtype, distribution: str, name: str) -> None:
    change = changes(distribution)[name]
    given = [weights(size, dtype, seed=size) for size in SIZES]
    pairs = [fenced(values) for values in given]
    change(cpu, [Target(str(k), s, inside) for k, (s, (inside, _)) in enumerate(zip(STREAMS, pairs, strict=True))])
    for size, (inside, buffer), want in zip(SIZES, pairs, expected(change, given, STREAMS), strict=True):
        assert same_bits(inside, want), size
        assert untouched(buffer, size), size


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["perturb_", "shift_ of three", "update_ stochastic", "replay_ of all kinds"])
def test_threads_share_a_list_of_tensors(isa: str, name: str, count: int) -> None:
    change = changes("gaussian")[name]
    sizes = [5, 200_003, 1, 70_000, 131_072, 0, 300]
    given = [weights(size, DTYPES[k % 3], seed=k) for k, size in enumerate(sizes)]
    streams = list(range(len(sizes)))
    found = [values.clone() for values in given]
    with threads(count):
        change(cpu, [Target(str(k), k, tensor) for k, tensor in enumerate(found)])
    for tensor, want in zip(found, expected(change, given, streams), strict=True):
        assert same_bits(tensor, want)


@pytest.mark.parametrize("start", [0, 1, 127, 128, 5000, 2**32 - 200, 2**35 - 1077, 2**39 - 1077, 2**41 + 3, 2**62 + 1])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_copy_from_any_start(isa: str, distribution: str, start: int) -> None:
    step = make_step(Noise(SEED, distribution), [3], [-0.25])
    for dtype in DTYPES:
        for out_dtype in {dtype, torch.float32}:
            for size in (0, 1, 129, 1500, 2500, 5001):
                source = weights(size, dtype, seed=size)
                out, buffer = fenced(torch.full((size,), float("nan"), dtype=out_dtype))
                cpu.perturbed_copy(out, source, start, step, 99)
                want = torch.empty(size, dtype=out_dtype)
                reference.perturbed_copy(want, source, start, step, 99)
                assert same_bits(out, want) and untouched(buffer, size)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_many_directions(isa: str, distribution: str, stochastic: bool) -> None:
    """As many as no call of Philox, no round of sums and no register holds, and some coefficients of 0."""
    for count in (2, 5, 8, 17, 64, 65, 150):
        directions = [(k * 7919) % 2**31 for k in range(count)]
        coefficients = [0.0 if k % 5 == 3 else 1e-40 if k % 7 == 6 else 0.01 * (-0.9) ** k for k in range(count)]
        for dtype in DTYPES:
            step = make_step(Noise(SEED, distribution), directions, coefficients, FACTOR, stochastic)
            found, want = weights(5001, dtype, seed=count), weights(5001, dtype, seed=count)
            cpu.replay_([Target("w", 5, found)], [step])
            reference.replay_([Target("w", 5, want)], [step])
            assert same_bits(found, want), count


@pytest.mark.parametrize("count", [2, 3])
def test_copy_on_threads(isa: str, count: int) -> None:
    step = make_step(Noise(SEED, "gaussian"), [3], [0.5])
    source = weights(300_001, torch.bfloat16)
    out, want = torch.empty(source.numel()), torch.empty(source.numel())
    with threads(count):
        cpu.perturbed_copy(out, source, 2**35 + 77, step, 5)
    reference.perturbed_copy(want, source, 2**35 + 77, step, 5)
    assert same_bits(out, want)


@pytest.mark.parametrize("width", [1, 5, 64, 128, 192, 576, 2049])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(isa: str, dtype: torch.dtype, distribution: str, width: int) -> None:
    step = make_step(Noise(SEED, distribution), [3], [0.5])
    weight = weights((60, width), dtype, seed=width)
    rows = torch.tensor([59, 0, 0, 7, 31, 59] * 25)
    out, buffer = fenced(torch.full((rows.numel() * width,), float("nan"), dtype=dtype))
    with threads(2):
        cpu.perturbed_rows(out.view(-1, width), weight, rows, step, 5)
    want = torch.empty(rows.numel(), width, dtype=dtype)
    reference.perturbed_rows(want, weight, rows, step, 5)
    assert same_bits(out.view(-1, width), want) and untouched(buffer, out.numel())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_project(isa: str, distribution: str, count: int) -> None:
    step = make_step(Noise(SEED, distribution), [0, 9, 2**31], [1.0, 1.0, 1.0])
    for dtype in DTYPES:
        for size in (0, 1, 100, 4096, 4097, 100_003):
            found = [Target("w", 5, torch.nan_to_num(weights(size, dtype, seed=size), 1.0, 2.0, -2.0))]
            with threads(count):
                assert cpu.project(found, step) == reference.project(found, step), size
    strided = torch.nan_to_num(weights((90, 70), torch.float16), 1.0, 2.0, -2.0).t()
    assert cpu.project([Target("w", 5, strided)], step) == reference.project([Target("w", 5, strided)], step)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_sample(isa: str, distribution: str) -> None:
    for start in (0, 3, 2**38 + 1):
        for size in (0, 1, 130, 5000):
            want = noise_range(start, size, SEED, distribution, 7, 1)
            found, gaussian = torch.empty(size), int(distribution == "gaussian")
            _native.sample(found.data_ptr(), size, start, SEED, gaussian, 7, 1, torch.get_num_threads())
            assert same_bits(found, want)


def test_sixteen_bit_weights_of_every_value(isa: str) -> None:
    """All 65,536 patterns widen and round as torch's do."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    for dtype in DTYPES[1:]:
        for name in ("perturb_", "perturb_ by 0", "update_ stochastic", "replay_ stochastic"):
            change, w = changes("gaussian")[name], patterns.view(dtype).clone()
            (want,) = expected(change, [w], [3])
            change(cpu, [Target("w", 3, w)])
            assert same_bits(w, want), name


@pytest.mark.slow
def test_instruction_sets_agree_on_millions() -> None:
    source = weights(5_000_011, torch.float32)
    for distribution in DISTRIBUTIONS:
        step = make_step(Noise(SEED, distribution), [1], [0.01])
        found = []
        for name in _native.available():
            out = torch.empty_like(source)
            with isa(name):
                cpu.perturbed_copy(out, source, 2**37 - 1_000_003, step, 5)
            found.append(out)
        assert all(same_bits(out, found[0]) for out in found)
