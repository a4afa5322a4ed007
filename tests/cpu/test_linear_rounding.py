"""How products round moved 16-bit weights: once, or not at all, as the user chose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blockzo.noise import Noise
from blockzo.ops import panels, perturbed_copy, perturbed_linear
from blockzo.ops.backends import cpu, reference
from blockzo.ops.steps import Step, make_step
from tests.cpu.cases import DISTRIBUTIONS, SEED, same_bits, threads
from tests.cpu.linear_cases import DIRECTIONS, EPS, SCALES, STREAM, numbers


def rounded(x: Tensor, weight: Tensor, bias: Tensor | None, start: int, step: Step) -> Tensor:
    """float64 products of moved weights that were rounded to their dtype."""
    out = []
    for group, scale in enumerate(step.coefficients):
        noise = Noise(step.seed, step.distribution)
        z = noise.sample(STREAM, weight.numel(), step.directions[group], start).view(weight.shape)
        product = x[group].double() @ (weight.float() + scale * z).to(weight.dtype).double().t()
        out.append(product if bias is None else product + bias[group].double())
    return torch.stack(out)


@pytest.mark.parametrize("path", ["narrow tiles", "rounded panels", "narrow panels"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("rows", "tokens", "width", "dtype"),
    [
        (1, 48, 32, torch.bfloat16),
        (32, 64, 256, torch.bfloat16),
        (77, 3, 99, torch.float16),
        (300, 50, 1056, torch.bfloat16),
        (131, 23, 1290, torch.bfloat16),
        (25, 150, 262, torch.bfloat16),
        (40, 700, 512, torch.float16),
    ],
)
def test_rounded_weights(
    linear_isa: str, path: str, distribution: str, rows: int, tokens: int, width: int, dtype: torch.dtype
) -> None:
    step = make_step(Noise(SEED, distribution), DIRECTIONS, SCALES)
    weight, x = numbers(rows, width, dtype=dtype), numbers(8, tokens, width, dtype=dtype)
    bias, start = numbers(8, rows).to(dtype), 48

    def product(x: Tensor, step: Step = step, bias: Tensor = bias) -> Tensor:
        return cpu.perturbed_linear(x, weight, bias, start, step, STREAM, path)

    found, want = product(x), rounded(x, weight, bias, start, step)
    size = x.double().norm(dim=-1, keepdim=True) * (weight.double().norm(dim=1) + 2.0 * width**0.5)
    assert bool(((found - want).abs() <= EPS[dtype] * want.abs() + 2.0**-20 * size).all())
    if path != "narrow tiles":
        return  # torch promises nothing of the order of its sums
    for count in (2, 3):
        with threads(count):
            assert same_bits(product(x), found)
    for group in range(8):
        part = slice(group, group + 1)
        one = make_step(Noise(SEED, distribution), DIRECTIONS[part], SCALES[part])
        assert same_bits(product(x[part], one, bias[part]), found[part])
    assert same_bits(product(x[:1].expand(8, -1, -1)), product(x[:1].repeat(8, 1, 1)))


def check_moved(
    backend: Any,
    dtype: torch.dtype,
    tokens: int,
    moved: str,
    width: int = 96,
    rows: int = 20,
    beside: int = 0,
    x_dtype: torch.dtype | None = None,
) -> None:
    """Sums in which the weights, all 1, cancel, so that the moves alone are left: these are under a last place of 1, and rounding
    loses or doubles each. The weight is a slice of columns, with so many `beside` it.
    """
    half = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-12
    noise, columns = Noise(SEED), slice(beside, beside + width)
    step = make_step(noise, [2, 2, 7], [1.5 * half, -1.5 * half, 0.75 * half])
    weight = torch.ones(rows, beside + width, dtype=dtype)[:, columns]
    x = numbers(3, tokens, width // 2, dtype=dtype).repeat_interleave(2, -1) * torch.tensor([1, -1]).repeat(width // 2)
    x = x.to(x_dtype or dtype)
    found = backend.perturbed_linear(x, weight, None, beside, step, STREAM, moved=moved).double()
    z = [noise.sample(STREAM, rows * (beside + width), d).view(rows, -1)[:, columns] for d in step.directions]
    moves = [c * n for c, n in zip(step.coefficients, z, strict=True)]
    exact = torch.stack([own.double() @ move.double().t() for own, move in zip(x, moves, strict=True)])
    narrow = torch.stack([own.double() @ (1 + move).to(dtype).double().t() for own, move in zip(x, moves, strict=True)])
    scale = float(exact.abs().max())
    assert float((found - {"float32": exact, "rounded": narrow}[moved]).abs().max()) <= 0.02 * scale
    assert float((narrow - exact).abs().max()) > 0.3 * scale


@pytest.mark.parametrize("moved", ["float32", "rounded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_user_chooses_how_moves_are_rounded(linear_isa: str, dtype: torch.dtype, moved: str) -> None:
    """For any number of tokens, of which "auto" takes one kind or the other."""
    for tokens in (1, 16, 47, 48, 49, 257):
        check_moved(cpu, dtype, tokens, moved)
    # rows of which products of 16-bit pairs and tables of signs may be made
    for tokens in (3, 48):
        check_moved(cpu, dtype, tokens, moved, 128, 132)
        check_moved(cpu, dtype, tokens, moved, 64, 132, beside=16)
        check_moved(cpu, dtype, tokens, moved, x_dtype=torch.float32)
    check_moved(cpu, dtype, 1100, moved, 32)
    check_moved(reference, dtype, 5, moved)
    check_moved(reference, dtype, 5, moved, x_dtype=torch.float32)


@pytest.mark.parametrize("moved", ["float32", "rounded"])
def test_the_choice_is_kept_past_a_mode(moved: str) -> None:
    """Operations that torch dispatches."""

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    class Dispatched:
        @staticmethod
        def perturbed_linear(
            x: Tensor, weight: Tensor, bias: None, start: int, step: Step, stream: int, moved: str
        ) -> Tensor:
            with Passing():
                return perturbed_linear(
                    x, weight, bias, Noise(step.seed), stream, step.directions, step.coefficients, start, moved=moved
                )

    check_moved(Dispatched, torch.bfloat16, 5, moved)


@pytest.mark.parametrize("moved", ["float32", "rounded"])
def test_the_choice_is_kept_where_16_bit_products_are_fast(moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch multiplies 16 bits on any CPU, if slowly: the way of one with AVX512-BF16 or AMX, but for its own kernels."""
    monkeypatch.setattr(panels, "multiplies", lambda dtype: True)
    for tokens in (47, 48, 400):
        check_moved(cpu, torch.bfloat16, tokens, moved)


def test_a_move_that_bfloat16_cannot_hold_is_not_lost(linear_isa: str) -> None:
    """Below 48 tokens: each weight is 1 and moves by far less than its last place; the plain products cancel."""
    weight, x = torch.ones(256, 128, dtype=torch.bfloat16), torch.ones(1, 16, 128, dtype=torch.bfloat16)
    x[..., ::2] = -1
    step = make_step(Noise(SEED), [3], [2.0**-14])
    out = cpu.perturbed_linear(x, weight, None, 0, step, STREAM, "tiles").float()
    want = torch.empty(256, 128)
    perturbed_copy(weight, Noise(SEED), STREAM, 2.0**-14, 3, out=want)
    want = (x[0, 0].double() @ (want.double() - 1.0).t()).float()
    assert bool((want != 0).any()) and torch.allclose(out[0, 0], want, rtol=0.01, atol=0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_slice_is_rounded_as_the_whole_is(linear_isa: str, distribution: str) -> None:
    """Columns by which the tokens are 0 add nothing, to the bit."""
    whole, x = numbers(60, 500, dtype=torch.bfloat16), numbers(2, 41, 500, dtype=torch.bfloat16)
    x[..., :130] = 0
    step = make_step(Noise(SEED, distribution), [2, 2], [0.1, -0.1])
    every = cpu.perturbed_linear(x, whole, None, 3, step, STREAM, "narrow tiles")
    part = whole[7:31, 130:]
    found = cpu.perturbed_linear(x[..., 130:], part, None, 3 + 7 * 500 + 130, step, STREAM, "narrow tiles")
    assert same_bits(found, every[..., 7:31].contiguous())
