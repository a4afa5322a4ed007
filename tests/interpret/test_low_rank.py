"""Noise of a low rank in Triton: the reference's bits, on matrices, blocks and views of them, in all modes."""

from __future__ import annotations

import pytest
import torch

import blockzo as bz
from blockzo.noise import COLUMN_FACTORS, ROW_FACTORS, Noise
from blockzo.noise import factors as plain_factors
from blockzo.ops.backends import reference
from blockzo.ops.backends.gpu import kernels, low_rank
from blockzo.ops.params import Target
from blockzo.ops.shards import Place
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, SEED, same_bits, weights
from tests.cpu.low_rank_steps import steps_of

STREAM = bz.stream_id("w")
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")


@pytest.mark.parametrize("side", [ROW_FACTORS, COLUMN_FACTORS])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_factors(distribution: str, side: int) -> None:
    for first, count, rank in ((0, 9, 1), (77, 40, 7), (1 << 33, 300, 5)):
        where = (first, count, side, rank, SEED, distribution, STREAM, 2**32 - 2)
        assert torch.equal(low_rank.factors(*where, "cpu"), plain_factors(*where))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moves(dtype: torch.dtype, distribution: str) -> None:
    shape, noise = (19, 131), Noise(SEED, distribution, 3)
    one, steps = make_step(noise, [7], [-0.3]).of_shape(shape), steps_of(noise, shape)
    many = steps_of(noise, shape, stochastic=True)
    found = {name: weights(shape, dtype, 3) for name in ("perturb_", "shift_", "replay_", "stochastic")}
    want = {name: tensor.clone() for name, tensor in found.items()}
    for backend, tensors in ((kernels, found), (reference, want)):
        target = {name: [Target("w", STREAM, tensor)] for name, tensor in tensors.items()}
        backend.perturb_(target["perturb_"], one)
        backend.shift_(target["shift_"], steps[0])
        backend.replay_(target["replay_"], steps)
        backend.replay_(target["stochastic"], many)
    for name, tensor in found.items():
        assert same_bits(tensor, want[name]), name


def test_blocks_views_copies_and_parts_of_other_forms() -> None:
    shape, noise = (21, 140), Noise(SEED, "gaussian", 2)
    steps = [make_step(noise, [1, 2], [0.3, -0.2], 0.5, True).of_shape(shape)]
    w = torch.randn(shape).bfloat16()
    places = (
        (w[2:9, 3:], Place(2 * 140 + 3, (140, 1))),
        (w[1::3, 5::7], Place(140 + 5, (420, 7))),
        (w[4:5], Place(560, (140, 1))),
        (w.t().contiguous().t(), None),
        (w.view(-1)[77:900], Place(77, (1,))),
        (w.view(60, 49)[:, :9], Place(0, (49, 1))),
    )
    for part, place in places:
        mine, want = part.clone(), part.clone()
        for backend, tensor in ((kernels, mine), (reference, want)):
            backend.replay_([Target("w", STREAM, tensor, place)], steps)
        assert same_bits(mine, want), place
    one = make_step(noise, [1], [0.3]).of_shape(shape)
    for rows, start in ((w[3:9], 420), (w.view(-1)[7:300], 7)):
        for dtype in (torch.bfloat16, torch.float32):
            mine, want = torch.empty(rows.shape, dtype=dtype), torch.empty(rows.shape, dtype=dtype)
            kernels.perturbed_copy(mine, rows, start, one, STREAM)
            reference.perturbed_copy(want, rows, start, one, STREAM)
            assert same_bits(mine, want)


def test_factors_that_do_not_fit_take_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, passes = (9, 20), []
    noise = Noise(SEED, "rademacher", 2)
    steps = steps_of(noise, shape, stochastic=True)
    monkeypatch.setattr(low_rank, "MOST_FACTORS", 2 * sum(shape) * 3)
    launch = low_rank._launch
    monkeypatch.setattr(low_rank, "_launch", lambda *given: (passes.append(given), launch(*given)))
    mine, want = torch.randn(shape).bfloat16(), torch.empty(shape, dtype=torch.bfloat16)
    want.copy_(mine)
    kernels.replay_([Target("w", STREAM, mine)], steps)
    reference.replay_([Target("w", STREAM, want)], steps)
    assert same_bits(mine, want) and len(passes) > 2
