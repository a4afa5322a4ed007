"""The moved linear layer in Triton against float64, each way: pairs and single groups, ragged shapes, views."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.backends.gpu import kernels, linear_choice, products
from blockzo.ops.quantized import quantize
from blockzo.ops.steps import Step, make_step
from tests.cpu.cases import DISTRIBUTIONS, SEED
from tests.cpu.test_linear_rounding import check_moved

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
# bfloat16 products are not the interpreter's: the compiled kernel is compared on a GPU
DTYPES = (torch.float32, torch.float16)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, start: int, step: Step, stream: int) -> Tensor:
    return reference.perturbed_linear(x.float(), weight, bias, start, step, stream).double()


@pytest.mark.parametrize(
    ("directions", "scales"),
    [([3, 3], [0.1, -0.1]), ([3, 4, 3], [0.1, 0.2, 0.1]), ([2, 5, 2, 5], [0.1, 0.3, -0.1, -0.3])],
)
@pytest.mark.parametrize(
    ("dtype", "distribution"),
    [
        pytest.param(dtype, distribution, marks=[] if alone else pytest.mark.slow)
        for dtype in DTYPES
        for distribution in DISTRIBUTIONS
        # each dtype and each distribution once
        for alone in [(dtype == torch.float32) is (distribution == "rademacher")]
    ],
)
@pytest.mark.parametrize("path", ["products", "panels"])
def test_against_the_reference(
    path: str, dtype: torch.dtype, distribution: str, directions: list[int], scales: list[float]
) -> None:
    if path == "products" and dtype == torch.float32:
        distribution, dtype = "rademacher", torch.float16
    tokens, rows, width = 5, 70, 200
    step = make_step(Noise(SEED, distribution), directions, scales)
    # a slice of 200 columns of rows that lie 256 apart
    weight = normal(rows, 256, dtype=dtype, seed=1)[:, :width]
    bias = normal(rows, dtype=dtype, seed=2)
    x = normal(len(directions), tokens, width, dtype=dtype, seed=3)
    found = kernels.perturbed_linear(x, weight, bias, 512, step, 9, path)
    want = exact(x, weight, bias, 512, step, 9)
    assert found.dtype == dtype and found.shape == want.shape
    tolerance = 1e-4 if dtype == torch.float32 else 6e-2
    assert (found.double() - want).abs().max() < tolerance


def test_a_bias_for_each_group_and_x_shared_by_groups() -> None:
    half = torch.float16
    weight, x = normal(30, 128, dtype=half, seed=1), normal(1, 2, 128, dtype=half, seed=2).expand(2, 2, 128)
    bias = normal(2, 30, dtype=half, seed=4)
    step = make_step(Noise(SEED), [3, 3], [0.1, -0.1])
    want = exact(x, weight, bias, 0, step, 9)
    for path in ("products", "panels"):
        assert (kernels.perturbed_linear(x, weight, bias, 0, step, 9, path).double() - want).abs().max() < 6e-2


def test_quantized_weights_are_widened() -> None:
    weight = quantize(normal(16, 128, seed=1), 4)
    x, step = normal(1, 2, 128, seed=2), make_step(Noise(SEED), [3], [0.1])
    want = exact(x, weight.dequantize(), None, 0, step, 9)
    assert (kernels.perturbed_linear(x, weight, None, 0, step, 9).double() - want).abs().max() < 1e-4


def test_rows_that_begin_amid_a_block_of_noise_go_by_panels() -> None:
    weight, x, step = normal(10, 100, seed=1), normal(1, 2, 100, seed=2), make_step(Noise(SEED), [3], [0.1])
    want = exact(x, weight, None, 7, step, 9)
    assert (kernels.perturbed_linear(x, weight, None, 7, step, 9).double() - want).abs().max() < 1e-4
    with pytest.raises(ValueError, match="multiples of 128; found torch.float32, torch.float32, 7, 100"):
        kernels.perturbed_linear(x, weight, None, 7, step, 9, "products")


@pytest.mark.parametrize("moved", ["float32", "rounded"])
@pytest.mark.parametrize(
    ("dtype", "width"),
    # rows of 96 begin within a block of noise, so that products do not fit; nor are those of bfloat16 the interpreter's
    [(torch.float16, 128), (torch.float16, 96), (torch.bfloat16, 96)],
    ids=str,
)
def test_the_user_chooses_how_moves_are_rounded(
    dtype: torch.dtype, width: int, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain: Callable[..., Tensor] = products.products
    monkeypatch.setattr(kernels, "products", lambda *arguments: calls.append(1) or plain(*arguments))
    for most, tokens in ((0, 3), (1 << 20, 3)):
        # the table, which decides for "auto" alone
        monkeypatch.setattr(linear_choice, "_most", lambda *told, most=most: most)
        check_moved(kernels, dtype, tokens, moved, width)
    assert len(calls) == (2 if (moved, width) == ("float32", 128) else 0)
