"""`torch.ops.blockzo`: what torch checks of a registered operation, and compiled functions that hold several of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import blockzo as bz
from blockzo.ops import library
from blockzo.ops.packed import packed
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, SEED

# what a gradient of these would be is not defined: they run under no_grad
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, distribution: str) -> None:
    ops, seed = torch.ops.blockzo, library.signed(SEED)
    weight, x = weights(6, 130, dtype=dtype), weights(2, 3, 130, dtype=dtype)
    out, rows = torch.zeros(6, 130, dtype=dtype), torch.tensor([5, 0, 5])
    calls = {
        ops.perturbed_linear: (x, weight, weights(6, dtype=dtype), 0, 9, seed, distribution, [1, 1], [0.5, -0.5]),
        ops.perturbed_copy: (out, weight, 128, 9, seed, distribution, 1, 0.5),
        ops.perturbed_rows: (weight, rows, 9, seed, distribution, 1, 0.5),
        ops.replay_: (
            [weight, out],
            [9, 10],
            [seed, 3],
            [distribution] * 2,
            [2, 0],
            [1, 2],
            [0.5, 0.25],
            [1.0, 0.5],
            [True, False],
            [True, False],
        ),
        ops.project: ([weight, out], [9, 10], seed, distribution, [1, 2]),
        ops.move_: ([weight, out], [9, 10], "update", seed, distribution, [1, 2], [0.5, 0.25], 0.5, False),
    }
    for call, arguments in calls.items():
        assert set(opcheck(call.default, arguments, test_utils=CHECKS).values()) == {"SUCCESS"}


def test_a_seed_of_64_bits_goes_through() -> None:
    assert library.signed(2**64 - 1) == -1 and library.signed(2**63 - 1) == 2**63 - 1
    w, want = torch.zeros(300), bz.Noise(2**64 - 1).sample("w", (300,))
    bz.perturb_({"w": w}, bz.Noise(2**64 - 1), 1.0)
    assert torch.equal(w, want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_compiled_whole(distribution: str) -> None:
    """A function of several operations is one graph, and gives what it gave."""
    ops, seed = torch.ops.blockzo, library.signed(SEED)

    def step(x: Tensor, weight: Tensor) -> Tensor:
        moved = ops.perturbed_rows(weight, torch.tensor([3, 1]), 9, seed, distribution, 1, 0.5)
        ops.move_([weight], [9], "perturb", seed, distribution, [2], [0.5], 1.0, False)
        ops.replay_(
            [weight],
            [9],
            [seed, 3],
            [distribution] * 2,
            [1, 2],
            [1, 2, 3],
            [0.5, 0.25, 0.1],
            [1.0, 0.5],
            [False] * 2,
            [False] * 2,
        )
        slope = ops.project([weight], [9], seed, distribution, [1, 2]).sum()
        found = ops.perturbed_linear(x, weight, None, 0, 9, seed, distribution, [1, 1], [0.5, -0.5])
        return found.sum() + moved.sum() + slope

    first, second = weights(6, 130), weights(6, 130)
    x = weights(2, 3, 130)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, first), step(x, second))
    assert torch.equal(first, second)


def test_a_replay_whose_lists_do_not_fit_is_refused() -> None:
    w = torch.zeros(3)
    with pytest.raises(ValueError, match="terms add up to 2 for 1 directions and 1 coefficients"):
        torch.ops.blockzo.replay_([w], [9], [1], ["gaussian"], [2], [0], [0.5], [1.0], [False], [False])
    assert not w.any()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_opcheck_with_numbers_in_memory(distribution: str) -> None:
    ops = torch.ops.blockzo
    two = packed(make_step(bz.Noise(SEED, distribution), [1, 2], [0.5, -0.5]), torch.device("cpu"))
    one, weight, x = two.term(0), weights(6, 130), weights(2, 3, 130)
    out, rows = torch.zeros(6, 130), torch.tensor([5, 0, 5])
    calls = {
        ops.perturbed_linear: (x, weight, weights(6), 0, 9, two.line, two.terms, distribution),
        ops.perturbed_copy: (out, weight, 128, 9, one.line, one.terms, distribution),
        ops.perturbed_rows: (weight, rows, 9, one.line, one.terms, distribution),
        ops.move_: ([weight, out], [9, 10], "update", two.line, two.terms, distribution, False),
    }
    for call, arguments in calls.items():
        assert set(opcheck(call.packed, arguments, test_utils=CHECKS).values()) == {"SUCCESS"}
