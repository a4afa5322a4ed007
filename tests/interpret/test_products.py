"""The two products of a layer apart: what groups share is multiplied once, and changes no value."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import blockzo as bz
from blockzo.kernels.products import noise_operand, part_count, tiles
from blockzo.noise import Noise, noise_range
from blockzo.ops.backends import choice, reference
from blockzo.ops.backends.gpu import kernels, products
from blockzo.ops.packed import packed
from blockzo.ops.steps import Step, make_step
from tests.cpu.cases import DISTRIBUTIONS, SEED, same_bits
from tests.interpret.test_linear import normal

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
ROWS, WIDTH = 50, 200
MOVES = {
    "one": ([3], [0.1]),
    "both signs": ([3, 3], [0.1, -0.1]),
    "other directions": ([3, 4], [0.1, 0.2]),
    "pairs and what is left": ([2, 5, 2, 5, 2], [0.1, 0.3, -0.1, 0.0, 0.5]),
    "more than a program takes": ([0, 1, 2, 3, 4], [0.1, -0.1, 0.2, 0.3, 0.4]),
}


def layer(
    dtype: torch.dtype, distribution: str, name: str, tokens: int, shared: bool
) -> tuple[Tensor, Tensor, Tensor, Step]:
    """x, a slice of 200 columns of rows that lie 256 apart, a bias for each group."""
    directions, scales = MOVES[name]
    groups = len(directions)
    x = normal(1 if shared else groups, tokens, WIDTH, dtype=dtype, seed=3).expand(groups, tokens, WIDTH)
    weight = normal(ROWS, 256, dtype=dtype, seed=1)[:, :WIDTH]
    bias = normal(groups, ROWS, dtype=dtype, seed=2)
    return x, weight, bias, make_step(Noise(SEED, distribution), directions, scales)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("name", list(MOVES))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_against_the_reference(distribution: str, name: str, shared: bool) -> None:
    for tokens, parts in ((5, 1), (20 if name == "both signs" else 5, 2)):
        x, weight, bias, step = layer(torch.float16, distribution, name, tokens, shared)
        found = products.products(x, weight, bias, 512, step, 9, parts).double()
        want = reference.perturbed_linear(x.float(), weight, bias.float(), 512, step, 9).double()
        # Gaussian numbers and the result are rounded to 11 bits
        assert (found - want).abs().max() < 2**-11 * want.abs().max() + 5e-3


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_group_alone_has_the_bits_it_has_among_others(shared: bool) -> None:
    # integers, whose sums are exact: the interpreter's own order depends on how many columns it is given
    x, weight, bias, step = layer(torch.float16, "rademacher", "pairs and what is left", 5, shared)
    x, weight = x.mul(4).round(), weight.mul(4).round()
    together = products.products(x, weight, bias, 512, step, 9, 2)
    assert same_bits(together, products.products(x.contiguous(), weight, bias, 512, step, 9, 2))
    tables = packed(step, torch.device("cpu"))
    assert same_bits(together, products.products(x, weight, bias, 512, tables, 9, 2))
    for group, (direction, scale) in enumerate(zip(step.directions, step.coefficients, strict=True)):
        alone = make_step(Noise(SEED), [direction], [scale])
        found = products.products(x[group : group + 1], weight, bias[group], 512, alone, 9, 2)
        assert same_bits(together[group], found[0])


@pytest.mark.parametrize("tokens", [33, 70])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_many_tokens(shared: bool, tokens: int) -> None:
    x, weight, bias, step = layer(torch.float16, "rademacher", "both signs", tokens, shared)
    found = products.products(x.mT.contiguous().mT, weight, bias[0], 512, step, 9)
    want = reference.perturbed_linear(x.float(), weight, bias[0].float(), 512, step, 9)
    assert (found.float() - want).abs().max() < 2**-11 * want.abs().max() + 5e-3


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """The tiles that were chosen, of operations on the GPU's kernels."""
    found: list[dict[str, int]] = []
    plain = products.tiles
    products._plan.cache_clear()
    monkeypatch.setattr(products, "tiles", lambda *arguments: found.append(plain(*arguments)) or found[-1].copy())
    monkeypatch.setattr(choice, "for_tensor", lambda tensor: kernels)
    return found


def test_a_shared_input_is_multiplied_once(told: list[dict[str, int]]) -> None:
    """From the public operation on: what the groups share is known by its stride."""
    weight, x = normal(64, 128, dtype=torch.float16, seed=1), normal(2, 3, 128, dtype=torch.float16, seed=2)
    for given in (x.expand(4, 2, 3, 128), x.expand(4, 2, 3, 128).contiguous()):
        bz.ops.perturbed_linear(given, weight, None, Noise(SEED), 7, [0, 0, 1, 1], [0.1, -0.1, 0.1, -0.1])
    assert [tile["SHARED"] for tile in told] == [1, 0]
    assert [(tile["SLOTS"], tile["SIDES"]) for tile in told] == [(2, 2), (2, 2)]


def test_the_first_layer_of_a_model_has_a_shared_input(told: list[dict[str, int]]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Linear(128, 256)).half()
    x = normal(3, 256, dtype=torch.float16)
    moves = Noise(SEED), [0, 0, 1, 1], [0.1, -0.1, 0.1, -0.1]
    losses = bz.perturbed_losses(model, *moves, lambda: model(x).float().square().mean(), max_group=4)
    assert [tile["SHARED"] for tile in told[:2]] == [1, 0]
    alone = bz.perturbed_losses(model, *moves, lambda: model(x).float().square().mean(), max_group=1)
    assert torch.allclose(losses, alone, rtol=1e-3)


@triton.jit
def _operand(
    out,
    steps,
    start,
    KIND: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    low, high = tl.load(steps).to(tl.uint32, bitcast=True), tl.load(steps + 1).to(tl.uint32, bitcast=True)
    first, stream, direction = start.to(tl.int64), tl.full((), 9, tl.uint32), tl.full((), 3, tl.uint32)
    z = noise_operand(first, 512, low, high, stream, direction, GAUSSIAN, APPROXIMATE, KIND, ROWS, WIDTH)
    tl.store(out + tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], z)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_noise_is_that_of_the_contract(dtype: torch.dtype, distribution: str) -> None:
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
    line = packed(make_step(Noise(SEED), [3], [1.0]), torch.device("cpu")).line
    out = torch.empty(4, 128, dtype=dtype)
    gaussian = distribution == "gaussian"
    for approximate in {False, gaussian}:
        _operand[(1,)](out, line, 1280, KIND=kind, GAUSSIAN=gaussian, APPROXIMATE=approximate, ROWS=4, WIDTH=128)
        for row, found in enumerate(out):
            want = noise_range(1280 + 512 * row, 128, SEED, distribution, 9, 3, torch.device("cpu"))
            if approximate:
                # few are rounded apart, and then mostly to neighbours (test_approximate.py)
                assert (found != want.to(dtype)).float().mean() < 0.05
                assert torch.allclose(found, want.to(dtype), rtol=2**-7, atol=5e-5)
            else:
                assert same_bits(found, want.to(dtype))


def test_pairs() -> None:
    step = make_step(Noise(0), [2, 5, 2, 5, 7, 2], [0.1] * 6)
    pairs = products.pairs_of(step.directions, 6)
    assert pairs == [(0, 2), (1, 3), (5, -1), (4, -1)]
    assert products.tasks_of(pairs, 3, 2) == ((0, 2, 1, 3, 5, -1), (4, -1, -1, -1, -1, -1))
    assert products.pairs_of(None, 3) == [(0, -1), (1, -1), (2, -1)]
    for directions, most in ((1, 1), (4, 4), (5, 3), (9, 3)):
        assert tiles(16, False, directions, True, True, 9)["SLOTS"] == most
    assert [part_count(*shape) for shape in ((64, 512), (4096, 4096), (2048, 8192), (50000, 2048))] == [
        1,
        4,
        8,
        1,
    ]
