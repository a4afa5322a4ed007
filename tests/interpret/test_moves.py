"""The Triton kernels give the reference's bits: every dtype, distribution and kind of step, ragged sizes, views."""

from __future__ import annotations

import pytest
import torch

from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.backends.gpu import kernels
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, SEED, changes, expected, same_bits, weights

SIZES = (0, 1, 129, kernels.BLOCK + 1)
STREAMS = (0, 0xFFFFFFFF, 17, 18)
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
SHORT = (
    "perturb_",
    "perturb_ by -0",
    "perturb_ past the largest",
    "shift_ of none",
    "shift_ of three",
    "update_ of one by -0",
    "update_ with decay",
    "update_ stochastic",
    "update_ of two seeds",
)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype: torch.dtype, distribution: str, name: str) -> None:
    check(dtype, changes(distribution)[name], SIZES)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_replay_of_all_kinds_of_steps(dtype: torch.dtype, distribution: str) -> None:
    check(dtype, changes(distribution)["replay_ stochastic"], (130,))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(changes("gaussian")))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_change(dtype: torch.dtype, distribution: str, name: str) -> None:
    check(dtype, changes(distribution)[name], SIZES)


def check(dtype: torch.dtype, change, sizes: tuple[int, ...]) -> None:
    given = [weights(size, dtype, seed=size) for size in sizes]
    # one of them does not begin where 16 bytes do
    found = [torch.empty(len(w) + 1, dtype=dtype)[k % 2 :][: len(w)].copy_(w) for k, w in enumerate(given)]
    streams = list(STREAMS[: len(sizes)])
    change(kernels, [Target(str(k), s, w) for k, (s, w) in enumerate(zip(streams, found, strict=True))])
    for size, mine, want in zip(sizes, found, expected(change, given, streams), strict=True):
        assert same_bits(mine, want), size


def test_a_list_of_dtypes_and_strides_and_mixed_distributions() -> None:
    base = [weights((6, 40), dtype, seed=3) for dtype in DTYPES]
    found = [w.clone().t() for w in base]
    steps = [make_step(Noise(SEED, d), [1], [0.25]) for d in ("gaussian", "rademacher", "rademacher", "gaussian")]
    kernels.replay_([Target(str(k), k, w) for k, w in enumerate(found)], steps)
    want = expected(lambda backend, targets: backend.replay_(targets, steps), [w.t() for w in base], [0, 1, 2])
    assert all(same_bits(mine, other) for mine, other in zip(found, want, strict=True))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("start", [0, 128, 5, 2**40 + 77])
def test_moved_copies(start: int, distribution: str) -> None:
    step = make_step(Noise(SEED, distribution), [7], [0.3])
    for dtype, out_dtype in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        source = weights(700, dtype, seed=1)
        mine, want = torch.empty(700, dtype=out_dtype), torch.empty(700, dtype=out_dtype)
        kernels.perturbed_copy(mine, source, start, step, 0x80000001)
        reference.perturbed_copy(want, source, start, step, 0x80000001)
        assert same_bits(mine, want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("width", [1, 128, 200])
def test_moved_rows(width: int, distribution: str) -> None:
    step = make_step(Noise(SEED, distribution), [7], [0.3])
    weight, rows = weights((9, width), torch.bfloat16), torch.tensor([8, 0, 3, 3])
    mine, want = torch.empty(4, width, dtype=torch.bfloat16), torch.empty(4, width, dtype=torch.bfloat16)
    kernels.perturbed_rows(mine, weight, rows, step, 5)
    reference.perturbed_rows(want, weight, rows, step, 5)
    assert same_bits(mine, want)


@pytest.mark.parametrize(
    ("distribution", "directions"),
    [
        ("rademacher", (0, 2**32 - 2)),
        ("gaussian", (2**32 - 2,)),
        # many seconds of interpretation
        pytest.param("gaussian", (0, 2**32 - 2), marks=pytest.mark.slow),
    ],
)
def test_projections(distribution: str, directions: tuple[int, ...]) -> None:
    step = make_step(Noise(SEED, distribution), directions, [1.0] * len(directions))
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(size, generator=generator).to(d) for size, d in ((5, DTYPES[0]), (8200, DTYPES[1]))]
    targets = [Target(str(k), k + 3, w) for k, w in enumerate(found)]
    assert kernels.project(targets, step) == reference.project(targets, step)
