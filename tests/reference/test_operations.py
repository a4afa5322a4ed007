"""The reference of the operations against the independent NumPy contract, and its rules for rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step
from tests.reference import contract

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DISTRIBUTIONS = ("rademacher", "gaussian")
SEED, STREAM, SIZE = 0xFEDCBA9876543210, 0x1234ABCD, 301
TERMS = [(0, 0.3), (7, -1e-3), (2**32 - 2, 0.7)]


def weights(dtype: torch.dtype, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return (torch.randn(size, generator=generator) * 2.0 ** torch.randint(-20, 3, (size,), generator=generator)).to(
        dtype
    )


def wide(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.float().numpy().copy()


def equal(found: Tensor, expected: np.ndarray[Any, Any]) -> bool:
    """Bits of what `expected`, exact in float32, is in the dtype of `found`."""
    other = torch.from_numpy(np.asarray(expected, dtype=np.float32)).to(found.dtype)
    integer = torch.int32 if found.dtype == torch.float32 else torch.int16
    return torch.equal(found.view(integer), other.view(integer))


def test_correct_rounding_to_16_bits() -> None:
    """torch's own conversion, which the reference leans on, is nearest even: every midpoint of bfloat16 and float16."""
    high = torch.arange(0, 1 << 16, dtype=torch.int64)
    value = (high << 16 | 0x8000).to(torch.int32).view(torch.float32)
    finite = torch.isfinite(value) & ((high & 0x7FFF) < 0x7F7F)
    rounded = value.to(torch.bfloat16).view(torch.int16).long() & 0xFFFF
    assert torch.equal(rounded[finite], (high + (high & 1))[finite])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_perturb_shift_update(dtype: torch.dtype, distribution: str) -> None:
    noise, w = Noise(SEED, distribution), weights(dtype)
    z = contract.noise(0, SIZE, SEED, distribution, STREAM, 7)
    total = contract.weighted_sum(0, SIZE, TERMS, SEED, distribution, STREAM)

    moved = w.clone()
    reference.perturb_([Target("w", STREAM, moved)], make_step(noise, [7], [0.3]))
    assert equal(moved, wide(w) + np.float32(0.3) * z)

    moved = w.clone()
    step = make_step(noise, *zip(*TERMS, strict=True))
    reference.shift_([Target("w", STREAM, moved)], step)
    assert equal(moved, wide(w) + total)

    moved = w.clone()
    reference.replay_([Target("w", STREAM, moved)], [step])
    assert equal(moved, wide(w) - total)

    moved = w.clone()
    factor = float(np.float32(1 - 0.01))
    decayed = make_step(noise, *zip(*TERMS, strict=True), factor)
    reference.replay_([Target("w", STREAM, moved)], [decayed, decayed])
    once = torch.from_numpy(wide(w) * np.float32(factor) - total).to(dtype)
    assert equal(moved, wide(once) * np.float32(factor) - total)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_scale_for_every_weight(dtype: torch.dtype, distribution: str) -> None:
    noise, w = Noise(SEED, distribution), weights(dtype)
    scales = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) * (torch.arange(SIZE) % 3)
    s, still = wide(scales), wide(scales) == 0
    z = contract.noise(0, SIZE, SEED, distribution, STREAM, 7)
    total = contract.weighted_sum(0, SIZE, TERMS, SEED, distribution, STREAM)

    moved = w.clone()
    reference.perturb_([Target("w", STREAM, moved, per_weight=scales)], make_step(noise, [7], [0.3]))
    assert equal(moved, np.where(still, wide(w), wide(w) + s * (np.float32(0.3) * z)))

    moved = w.clone()
    step = make_step(noise, *zip(*TERMS, strict=True))
    reference.shift_([Target("w", STREAM, moved, per_weight=scales)], step)
    assert equal(moved, np.where(still, wide(w), wide(w) + s * total))

    moved = w.clone()
    factor = float(np.float32(1 - 0.01))
    decayed = make_step(noise, *zip(*TERMS, strict=True), factor)
    reference.replay_([Target("w", STREAM, moved, per_weight=scales)], [decayed, decayed])
    once = torch.from_numpy(wide(w) * np.float32(factor) - s * total).to(dtype)
    assert equal(moved, np.where(still, wide(w), wide(once) * np.float32(factor) - s * total))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_stochastic_rounding(dtype: torch.dtype) -> None:
    w = weights(dtype)
    noise = Noise(SEED, "gaussian")
    step = make_step(noise, *zip(*TERMS, strict=True), 1.0, True)
    moved = w.clone()
    reference.replay_([Target("w", STREAM, moved)], [step])
    values = wide(w) - contract.weighted_sum(0, SIZE, TERMS, SEED, "gaussian", STREAM)
    random = contract.rounding_bits(0, SIZE, SEED, STREAM)
    name = str(dtype).removeprefix("torch.")
    expected = [contract.round_stochastically(v, name, n) for v, n in zip(values, random, strict=True)]
    assert equal(moved, np.array(expected))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("value", [1.0 + 2**-11, -3.14159e-3, 2.0**-14 * 1.37, 2.0**-20 * 1.61, -(2.0**-24) * 0.3])
def test_stochastic_rounding_has_the_right_mean(dtype: torch.dtype, value: float) -> None:
    count = 1 << 18
    x = torch.full((count,), value, dtype=torch.float32)
    rounded = reference.round_stochastically(x, dtype, torch.arange(count) * 40503 & 0xFFFF).double()
    exact = float(x[0])
    low, high = float(rounded.min()), float(rounded.max())
    # only the two neighbours; all 65,536 numbers came equally often, so what is left is their own granularity
    assert len(torch.unique(rounded)) <= 2 and low <= exact <= high
    assert abs(float(rounded.mean()) - exact) <= (high - low) * 2**-12 + abs(exact) * 2**-30


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_project(distribution: str) -> None:
    size = 4096 * 2 + 333
    d = weights(torch.float32, size)
    found = reference.project([Target("w", STREAM, d)], make_step(Noise(SEED, distribution), [0, 5], [1.0, 1.0]))
    z = [noise_values(size, distribution, k) for k in (0, 5)]
    assert found == [contract.project(wide(d).astype(np.float64), row) for row in z]


def noise_values(size: int, distribution: str, direction: int) -> np.ndarray[Any, Any]:
    return contract.noise(0, size, SEED, distribution, STREAM, direction).astype(np.float64)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_copy_and_rows(distribution: str) -> None:
    step = make_step(Noise(SEED, distribution), [3], [-0.25])
    w = weights(torch.bfloat16, 6 * 50).view(6, 50)
    rows = torch.tensor([5, 0, 0, 3])
    out = torch.empty(4, 50, dtype=torch.bfloat16)
    reference.perturbed_rows(out, w, rows, step, STREAM)
    z = contract.noise(0, 300, SEED, distribution, STREAM, 3).reshape(6, 50)
    assert equal(out, (wide(w) + np.float32(-0.25) * z)[[5, 0, 0, 3]])
    start, result = 2**38 + 77, torch.empty(300)
    reference.perturbed_copy(result, w.view(-1), start, step, STREAM)
    z = contract.noise(start, 300, SEED, distribution, STREAM, 3)
    assert equal(result, wide(w).reshape(-1) + np.float32(-0.25) * z)
