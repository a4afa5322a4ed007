"""Strided tensors, random shapes, and addresses beyond 32 bits."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blockzo import _native
from blockzo.noise import Noise, noise_at
from blockzo.ops.backends import cpu
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, ISAS, SEED, changes, expected, isa, same_bits, threads, weights

NAMES = ["perturb_", "shift_ of three", "update_ of three", "update_ stochastic", "replay_ of all kinds"]


def views(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (view, the memory that holds it)."""
    found = {}
    for name, shape, cut in [
        ("transposed", (70, 90), lambda t: t.t()),
        ("every third column", (50, 201), lambda t: t[:, ::3]),
        ("inner columns", (40, 300), lambda t: t[:, 17:250]),
        ("rows apart", (40, 300), lambda t: t[::2]),
        ("permuted", (6, 7, 8, 9), lambda t: t.permute(2, 0, 3, 1)),
        ("partly joined", (5, 6, 64), lambda t: t[:, 1:4]),
        ("one column", (3000, 3), lambda t: t[:, 1]),
        ("sizes of one", (1, 300, 1, 5), lambda t: t[:, ::2].permute(3, 1, 0, 2)),
        ("scalar", (9,), lambda t: t[4]),
        ("long transposed", (3, 50_000), lambda t: t.t()),
    ]:
        whole = weights(shape, dtype, seed=len(name))
        found[name] = (cut(whole), whole)
    return found


@pytest.mark.parametrize("operation", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided(isa: str, dtype: torch.dtype, operation: str) -> None:
    for distribution in DISTRIBUTIONS:
        change = changes(distribution)[operation]
        for name, (view, whole) in views(dtype).items():
            before = whole.clone()
            (want,) = expected(change, [view], [5])
            with threads(2):
                change(cpu, [Target("w", 5, view)])
            assert same_bits(view, want), name
            # what lies between the view's elements is as it was
            mask = torch.ones(whole.shape, dtype=torch.bool)
            torch.as_strided(mask, view.shape, view.stride(), view.storage_offset()).fill_(False)
            assert same_bits(whole[mask], before[mask]), name


@given(
    st.sampled_from(ISAS),
    st.lists(st.integers(0, 40), min_size=0, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from(DTYPES),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(NAMES),
    st.integers(1, 3),
)
def test_any_shape_and_stride(name, shape, random, dtype, distribution, operation, count) -> None:  # type: ignore[no-untyped-def]
    order = random.sample(range(len(shape)), len(shape))
    gaps = [random.randint(1, 3) for _ in shape]
    whole = weights(tuple(size * gap for size, gap in zip(shape, gaps, strict=True)), dtype)
    view = whole[tuple(slice(None, None, gap) for gap in gaps)].permute(order)
    change = changes(distribution)[operation]
    (want,) = expected(change, [view], [77])
    with isa(name), threads(count):
        change(cpu, [Target("w", 77, view)])
    assert same_bits(view, want)


@given(
    st.sampled_from(ISAS),
    st.sampled_from(DTYPES),
    st.sampled_from(DISTRIBUTIONS),
    st.integers(0, 2**63 - 10_000),
    st.integers(0, 3000),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 2),
    st.floats(-4.0, 4.0, width=32),
)
def test_any_address(name, dtype, distribution, start, size, seed, direction, scale) -> None:  # type: ignore[no-untyped-def]
    step = make_step(Noise(seed, distribution), [direction], [scale])
    source, out = weights(size, dtype), torch.empty(size, dtype=dtype)
    with isa(name):
        cpu.perturbed_copy(out, source, start, step, 5)
    z = noise_at(torch.arange(start, start + size), seed, distribution, 5, direction)
    assert same_bits(out, (source.float() + scale * z).to(dtype))


def reserved(elements: int) -> Tensor:
    """bfloat16 memory that is only reserved: the pages that are touched are all that it costs."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, elements * 2, flags=flags)
    return torch.from_numpy(np.frombuffer(memory, dtype=np.int16)).view(torch.bfloat16)


HUGE = 3 * 2**31 + 12_345


def test_weights_more_than_32_bits_apart(isa: str) -> None:
    whole = reserved(HUGE)
    stride = 2**21 + 8
    view = whole[: stride * 3000].view(3000, stride)[:, 5:8]
    view.copy_(torch.nan_to_num(weights((3000, 3), torch.bfloat16)))
    assert (view.shape[0] - 1) * stride > 2**32
    for operation in NAMES:
        change = changes("gaussian")[operation]
        (want,) = expected(change, [view], [5])
        change(cpu, [Target("w", 5, view)])
        assert same_bits(view.contiguous(), want), operation


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_rows_beyond_2_to_the_32(isa: str, distribution: str) -> None:
    width = 1000
    weight = reserved(HUGE // width * width).view(-1, width)
    rows = torch.tensor([weight.shape[0] - 1, 0, 2**31 // width, 2**32 // width])
    weight[rows] = torch.nan_to_num(weights((4, width), torch.bfloat16))
    step = make_step(Noise(SEED, distribution), [3], [0.5])
    out = torch.empty(4, width, dtype=torch.bfloat16)
    cpu.perturbed_rows(out, weight, rows, step, 5)
    index = rows.view(-1, 1) * width + torch.arange(width)
    z = noise_at(index.view(-1), SEED, distribution, 5, 3).view(4, width)
    assert same_bits(out, (weight[rows].float() + 0.5 * z).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("sizes", "order"), [((2**20, 3000), (0, 1)), ((3000, 2**20), (1, 0)), ((64, 2**16, 700), (1, 2, 0))]
)
def test_logical_index_to_memory_beyond_2_to_the_31(sizes: tuple[int, ...], order: tuple[int, ...]) -> None:
    """Which element a strided kernel reads at a huge logical index, from memory of which a few pages are used."""
    total = int(np.prod(sizes))
    assert total > 2**31
    whole = reserved(total)
    strides = [int(np.prod(sizes[d + 1 :])) for d in range(len(sizes))]
    shape, step = [sizes[d] for d in order], [strides[d] for d in order]
    view = torch.as_strided(whole, shape, step)
    for first in (0, 2**31 - 40, 2**31 + 123_456_789, total - 80):
        index = np.arange(first, first + 80)
        place = np.unravel_index(index, shape)
        offsets = sum(p.astype(np.int64) * s for p, s in zip(place, step, strict=True))
        marks = torch.arange(1, 81, dtype=torch.float32).to(torch.bfloat16)
        whole[torch.from_numpy(offsets)] = marks
        dense = torch.zeros(80, dtype=torch.bfloat16)
        _native.gather(dense.data_ptr(), (view.data_ptr(), 1, 5, list(view.shape), list(view.stride())), first, 80)
        assert torch.equal(dense, marks), first


@pytest.mark.slow
def test_more_than_2_to_the_31_weights() -> None:
    """4.3 GB written for real, from one end to the other."""
    count = 2**31 + 1001
    w = torch.zeros(count, dtype=torch.bfloat16)
    cpu.perturb_([Target("w", 5, w)], make_step(Noise(SEED, "rademacher"), [3], [1.0]))
    for first in (0, 2**31 - 500, count - 1000):
        z = noise_at(torch.arange(first, first + 1000), SEED, "rademacher", 5, 3)
        assert torch.equal(w[first : first + 1000].float(), z)
    assert bool((w[:: 2**10].abs() == 1).all())
