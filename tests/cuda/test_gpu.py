"""On a real GPU: every operation gives the CPU's bits, by Triton and by CUDA; the linear layer is right to rounding."""

from __future__ import annotations

import pytest
import torch

import blockzo as bz
from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.backends.gpu import cuda, kernels
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, SEED, changes, expected, same_bits, weights
from tests.cpu.low_rank_steps import steps_of

SIZES = (0, 1, 129, kernels.BLOCK + 1, 70_001)


@pytest.fixture(params=["triton", "cuda"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        monkeypatch.setattr(kernels, "cuda_library", lambda device: None)
    elif cuda.library() is None:
        pytest.skip("the CUDA library was not built")
    return request.param


@pytest.mark.parametrize("name", list(changes("gaussian")))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moves(launcher: str, dtype: torch.dtype, distribution: str, name: str) -> None:
    change = changes(distribution)[name]
    given = [weights(size, dtype, seed=size) for size in SIZES]
    found = [
        torch.empty(len(w) + 1, dtype=dtype, device="cuda")[k % 2 :][: len(w)].copy_(w) for k, w in enumerate(given)
    ]
    streams = list(range(len(SIZES)))
    change(kernels, [Target(str(k), s, w) for k, (s, w) in enumerate(zip(streams, found, strict=True))])
    for size, mine, want in zip(SIZES, found, expected(change, given, streams), strict=True):
        assert same_bits(mine.cpu(), want), size


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_copies_rows_and_projections(distribution: str) -> None:
    step = make_step(Noise(SEED, distribution), [7], [0.3])
    for start in (0, 128, 5, 2**40 + 77):
        source = weights(5000, torch.bfloat16, seed=1)
        mine, want = torch.empty(5000, device="cuda"), torch.empty(5000)
        kernels.perturbed_copy(mine, source.cuda(), start, step, 0x80000001)
        reference.perturbed_copy(want, source, start, step, 0x80000001)
        assert same_bits(mine.cpu(), want)
    weight, rows = weights((9, 200), torch.bfloat16), torch.tensor([8, 0, 3, 3])
    mine, want = torch.empty(4, 200, dtype=torch.bfloat16, device="cuda"), torch.empty(4, 200, dtype=torch.bfloat16)
    kernels.perturbed_rows(mine, weight.cuda(), rows.cuda(), step, 5)
    reference.perturbed_rows(want, weight, rows, step, 5)
    assert same_bits(mine.cpu(), want)
    delta = torch.randn(100_001)
    assert kernels.project([Target("w", 3, delta.cuda())], step) == reference.project([Target("w", 3, delta)], step)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_low_rank(dtype: torch.dtype, distribution: str) -> None:
    shape, noise = (70, 1100), Noise(SEED, distribution, 3)
    one = make_step(noise, [7], [-0.3]).of_shape(shape)
    for change in (
        lambda backend, found: backend.perturb_(found, one),
        lambda backend, found: backend.replay_(found, steps_of(noise, shape, stochastic=True)),
    ):
        mine, want = weights(shape, dtype, 3).cuda(), weights(shape, dtype, 3)
        change(kernels, [Target("w", 5, mine)])
        change(reference, [Target("w", 5, want)])
        assert same_bits(mine.cpu(), want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear(dtype: torch.dtype, distribution: str) -> None:
    """By panels; products have tests of their own."""
    for directions, scales in (([3, 3], [0.05, -0.05]), ([3, 4, 3], [0.05, 0.1, 0.05])):
        for tokens, rows, width in ((5, 70, 200), (33, 128, 512)):
            step = make_step(Noise(SEED, distribution), directions, scales)
            weight = torch.randn(rows, 512).to(dtype)[:, :width]
            bias, x = torch.randn(rows).to(dtype), torch.randn(len(directions), tokens, width).to(dtype)
            found = (
                kernels.perturbed_linear(x.cuda(), _slice(weight), bias.cuda(), 512, step, 9, "panels").cpu().double()
            )
            want = reference.perturbed_linear(x.double().float(), weight, bias.float(), 512, step, 9).double()
            # at most twice torch's own error at this precision
            plain = torch.nn.functional.linear(x.cuda(), weight.cuda(), bias.cuda()).cpu().double()
            exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
            allowed = 2 * (plain - exact).abs().max() + 1e-5
            if dtype != torch.float32:
                # the moved weight is rounded too
                allowed = 4 * allowed
            assert (found - want).abs().max() <= allowed


def _slice(weight: torch.Tensor) -> torch.Tensor:
    """On the GPU, with the strides it has."""
    whole = torch.empty(weight.shape[0], 512, dtype=weight.dtype, device="cuda")
    return whole[:, : weight.shape[1]].copy_(weight)


def test_a_step_on_another_stream_gives_the_same_weights() -> None:
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 8)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    batch = torch.randn(4, 256, device="cuda")
    for model, stream in zip(models, (None, torch.cuda.Stream()), strict=True):
        model.cuda()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            zo = bz.ZO(model, lambda m, b: m(b).square().mean(), method=bz.MeZO(), lr=1e-2)
            for _ in range(5):
                zo.step(batch)
        torch.cuda.synchronize()
    assert bz.digest(models[0]) == bz.digest(models[1])
