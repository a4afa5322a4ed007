"""Noise of a low rank: every instruction set against the reference, bit for bit, on wholes, parts, rows and copies."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import blockzo as bz
from blockzo.noise import COLUMN_FACTORS, ROW_FACTORS, Noise, factors
from blockzo.ops import low_rank, perturbed_copy, perturbed_linear, perturbed_rows
from blockzo.ops.backends import cpu, reference
from blockzo.ops.params import Target
from blockzo.ops.quantized import quantize
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, SEED, same_bits, threads, weights
from tests.cpu.low_rank_steps import steps_of

STREAM = bz.stream_id("w")
CASES = [(1, (37, 70)), (3, (70, 131)), (16, (17, 1100)), (64, (66, 67))]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("rank", "shape"), CASES)
@pytest.mark.usefixtures("isa")
def test_moves(distribution: str, rank: int, shape: tuple[int, int]) -> None:
    noise = Noise(SEED, distribution, rank)
    one = make_step(noise, [7], [-0.3]).of_shape(shape)
    assert (one.rank, one.width) == (rank, shape[1])
    for dtype in DTYPES:
        found = {name: weights(shape, dtype, 3) for name in ("perturb_", "shift_", "replay_", "stochastic")}
        expected = {name: tensor.clone() for name, tensor in found.items()}
        for backend, tensors in ((cpu, found), (reference, expected)):
            target = {name: [Target("w", STREAM, tensor)] for name, tensor in tensors.items()}
            backend.perturb_(target["perturb_"], one)
            backend.shift_(target["shift_"], steps_of(noise, shape)[0])
            backend.replay_(target["replay_"], steps_of(noise, shape))
            backend.replay_(target["stochastic"], steps_of(noise, shape, stochastic=True))
        for name, tensor in found.items():
            assert same_bits(tensor, expected[name]), (name, dtype)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_reference_is_the_sample(distribution: str) -> None:
    noise, w = Noise(SEED, distribution, 4), torch.randn(20, 30)
    moved = w.clone()
    reference.perturb_([Target("w", STREAM, moved)], make_step(noise, [2], [0.25]).of_shape(w.shape))
    assert torch.equal(moved, w + 0.25 * noise.sample("w", w.shape, 2))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("isa")
def test_parts_views_rows_and_copies(distribution: str) -> None:
    shape, noise = (45, 1050), Noise(SEED, distribution, 5)
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.randn(shape).to(dtype)
        moved = w.clone()
        bz.perturb_({"w": moved}, noise, 0.3, 6)
        turned, spread = w.t().contiguous().t(), torch.zeros(90, 2101, dtype=dtype)[::2, 1::2].copy_(w)
        for view in (turned, spread):
            bz.perturb_({"w": view}, noise, 0.3, 6)
            assert same_bits(view.contiguous(), moved)
        for rows, columns in product((slice(0, 9), slice(30, 45), slice(1, 44, 3)), (slice(None), slice(3, 1030))):
            part = w[rows, columns]
            index = rows.start * shape[1] + (columns.start or 0)
            piece = part.clone()
            strides = ((rows.step or 1) * shape[1], 1)
            bz.perturb_({"w": bz.Shard(piece, index, strides, shape)}, noise, 0.3, 6)
            assert same_bits(piece, moved[rows, columns].contiguous())
        for piece, at, strides, want in (
            (w[3::4, 2::5].clone(), 3 * 1050 + 2, (4 * 1050, 5), moved[3::4, 2::5]),
            (w[:, 9].clone(), 9, (1050,), moved[:, 9]),
            (w.view(-1)[77:9000].clone(), 77, (1,), moved.view(-1)[77:9000]),
            (w[4:5, 4:5].clone(), 4204, (1, 1), moved[4:5, 4:5]),
        ):
            bz.perturb_({"w": bz.Shard(piece, at, strides, shape)}, noise, 0.3, 6)
            assert same_bits(piece, want.contiguous())
        copied = perturbed_copy(w.view(-1)[77:9000], noise, "w", 0.3, 6, 77, shape=shape)
        assert same_bits(copied, moved.view(-1)[77:9000].contiguous())
        chosen = torch.tensor([[44, 0, 7], [7, 3, 2]])
        assert same_bits(perturbed_rows(w, chosen, noise, "w", 0.3, 6), moved[chosen])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.usefixtures("isa")
def test_projections(distribution: str) -> None:
    noise, w = Noise(SEED, distribution, 3), torch.randn(70, 131)
    step = make_step(noise, [0, 9], [1.0, 1.0]).of_shape(w.shape)
    for view in (w, w.t().contiguous().t()):
        target = [Target("w", STREAM, view)]
        assert cpu.project(target, step) == reference.project(target, step)
    found = bz.project({"w": w, "v": torch.ones(7)}, noise, [0, 9])
    exact = [
        (w.double() * noise.sample("w", w.shape, d)).sum() + noise.sample("v", 7, d).double().sum() for d in (0, 9)
    ]
    torch.testing.assert_close(found, torch.stack(exact), rtol=1e-12, atol=1e-10)
    parts = [bz.Shard.at(w[a:b], w.shape, (a, 0)) for a, b in ((0, 33), (33, 70))]
    total = sum(bz.project({"w": part}, noise, [0, 9]) for part in parts) + bz.project(
        {"v": torch.ones(7)}, noise, [0, 9]
    )
    torch.testing.assert_close(total, found, rtol=1e-12, atol=1e-10)


@pytest.mark.usefixtures("isa")
def test_factors() -> None:
    for distribution, side, first, rank in product(
        DISTRIBUTIONS, (ROW_FACTORS, COLUMN_FACTORS), (0, 77, 1 << 33), (1, 7)
    ):
        where = (first, 333, side, rank, SEED, distribution, STREAM, 4)
        assert torch.equal(cpu.factors(*where), factors(*where))


def test_many_steps_are_applied_in_several_passes() -> None:
    """More factors than one pass holds, and records of full rank among those of low rank."""
    w = torch.randn(70, 80).bfloat16()
    ranks = [64, 64, None, 64, 2, *[64] * 66]
    records = [
        bz.Record(k, k, "rademacher", (bz.BlockUpdate((0,), (1e-2,)),), stochastic_rounding=k % 3 == 0, rank=rank)
        for k, rank in enumerate(ranks)
    ]
    found, expected = w.clone(), w.clone()
    bz.replay_({"w": found}, records)
    for record in records:
        step = make_step(record.noise(0), [0], [1e-2], 1.0, record.stochastic_rounding)
        reference.replay_([Target("w", STREAM, expected)], [step.of_shape(w.shape)])
    assert same_bits(found, expected)


def test_threads_do_not_show() -> None:
    noise, w = Noise(SEED, "gaussian", 2), torch.randn(600, 700)
    results = []
    for count in (1, 3):
        with threads(count):
            moved = w.clone()
            bz.update_({"w": moved, "b": torch.ones(9)}, noise, [0.1, -0.2])
            results.append((moved, bz.project({"w": w}, noise, [0, 1])))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DISTRIBUTIONS),
    st.integers(1, 20),
    st.integers(1, 60),
    st.integers(1, 300),
    st.data(),
)
def test_any_block_of_any_matrix(distribution: str, rank: int, more: int, wider: int, data: st.DataObject) -> None:
    shape = rank + more, rank + wider
    top, left = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    height, width = data.draw(st.integers(1, shape[0] - top)), data.draw(st.integers(1, shape[1] - left))
    noise, w = Noise(data.draw(st.integers(0, 2**64 - 1)), distribution, rank), torch.zeros(shape)
    part = w[top : top + height, left : left + width].clone()
    bz.update_({"w": bz.Shard.at(part, shape, (top, left))}, noise, [1.0, -0.5], [3, 8])
    want = 0.0 - (noise.sample("w", shape, 3) + -0.5 * noise.sample("w", shape, 8))
    assert torch.equal(part, want[top : top + height, left : left + width])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_products(distribution: str) -> None:
    """Parts and transposes of a matrix, groups that share x, biases, 16 bits, quantised weights; against the moved weight."""
    draw = torch.Generator().manual_seed(0)
    noise, shape, groups = Noise(SEED, distribution, 4), (90, 130), (5, 1, 5, 5)
    scales = (0.3, -0.2, 0.0, -0.3)

    def check(weight: Tensor, at: int, x: Tensor, bias: Tensor | None, z: list[Tensor], tolerance: float) -> None:
        found = perturbed_linear(x, weight, bias, noise, "w", groups, scales, at, shape)
        for g in range(len(groups)):
            want = x[g].double() @ (weight.double() + scales[g] * z[g]).t()
            if bias is not None:
                want = want + (bias if bias.dim() == 1 else bias[g])
            torch.testing.assert_close(
                found[g].double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max())
            )

    z = [noise.sample("w", shape, d).double() for d in groups]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        w = torch.randn(shape, generator=draw).to(dtype)
        x, turned = (torch.randn(4, 3, 5, n, generator=draw).to(dtype) for n in shape[::-1])
        for bias in (None, torch.randn(90, generator=draw).to(dtype), torch.randn(4, 90, generator=draw).to(dtype)):
            check(w, 0, x, bias, z, tolerance)
            check(w, 0, x[:1].expand(4, 3, 5, 130), bias, z, tolerance)
        check(w.t(), 0, turned, None, [one.t() for one in z], tolerance)
        check(w[7:40], 7 * 130, x, None, [one[7:40] for one in z], tolerance)
        check(w[::3, 9:70], 9, x[..., 9:70].contiguous(), None, [one[::3, 9:70] for one in z], tolerance)
        check(w[7:40].t(), 7 * 130, turned[..., 7:40].contiguous(), None, [one[7:40].t() for one in z], tolerance)
        one = w[3:4]
        check(one, 390, x, None, [value[3:4] for value in z], tolerance)
    for bits in (8, 4):
        held = quantize(torch.randn(shape, generator=draw), bits)
        x = torch.randn(4, 15, 130, generator=draw)
        found = perturbed_linear(x, held, None, noise, "w", groups, scales)
        want = torch.stack([x[g] @ (held.dequantize() + scales[g] * z[g].float()).t() for g in range(4)])
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-3)


def test_a_view_of_another_form_has_no_product() -> None:
    w, noise = torch.randn(24, 30), Noise(1, "gaussian", 2)
    view = w.view(12, 60)
    assert not low_rank.is_part(view, 0, 30) and low_rank.is_part(w, 0, 30)
    with pytest.raises(ValueError, match="is no part of rows and columns of a matrix with 30 columns"):
        perturbed_linear(torch.ones(3, 60), view, None, noise, "w", [0], [1.0], shape=(24, 30))


def test_refusals_come_before_the_first_write() -> None:
    noise, w, v = Noise(1, "gaussian", 2), torch.zeros(9, 9), torch.zeros(9, 9)
    shard = bz.Shard(v, 81, (9, 1))
    record = bz.Record(0, 1, "gaussian", (bz.BlockUpdate((0,), (1.0,)),), rank=2)
    for call in (
        lambda: bz.perturb_({"w": w, "v": shard}, noise, 1.0),
        lambda: bz.update_({"w": w, "v": shard}, noise, [1.0]),
        lambda: bz.replay_({"w": w, "v": shard}, [record]),
        lambda: bz.project({"w": w, "v": shard}, noise, [0]),
    ):
        with pytest.raises(ValueError, match="'v' is a Shard without the shape of its whole.*Shard.at"):
            call()
        assert not w.any() and not v.any()
    bz.perturb_({"v": shard}, Noise(1, "gaussian"), 1.0)
    assert v.any()
    with pytest.raises(ValueError, match="start is 9 and shape None"):
        perturbed_copy(w, noise, "w", 1.0, start=9)
    with pytest.raises(ValueError, match="last index 161 is outside a whole of shape"):
        bz.Shard(v, 81, (9, 1), (9, 9))


def test_backends_without_kernels_leave_it_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, w = Noise(1, "gaussian", 2), torch.randn(20, 30)
    want = w + 0.5 * noise.sample("w", w.shape)
    monkeypatch.setattr(cpu, "LOW_RANK", False)
    monkeypatch.setattr(cpu, "perturb_", lambda *_: pytest.fail("the kernel was called"))
    moved = w.clone()
    bz.perturb_({"w": moved}, noise, 0.5)
    assert torch.equal(moved, want)
