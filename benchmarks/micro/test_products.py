"""Linear layers whose weight is moved while it is multiplied, beside F.linear of the same rows; each call meets a weight that
none just before it has read.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conftest import Timed
from benchmarks.linear import cold, in_turn
from blockzo.noise import Noise
from blockzo.ops import perturbed_linear
from blockzo.ops.backends import cpu, reference
from blockzo.ops.packed import packed
from blockzo.ops.quantized import QuantizedWeight, quantize
from blockzo.ops.steps import make_step

EPS, STREAM = 1e-3, 5
KINDS = ("rademacher", "gaussian")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def numbers(directions: int) -> tuple[list[int], list[float]]:
    """Both signs of each, where there are several."""
    if directions == 1:
        return [0], [EPS]
    return [k for k in range(directions) for _ in (1, -1)], [EPS, -EPS] * directions


def close(found: Tensor, expected: Tensor, what: str) -> None:
    # sums of products are added in another order than the reference's
    bound = TOLERANCE[found.dtype] * float(expected.abs().max())
    if float((found.float() - expected.float()).abs().max()) > bound:
        raise RuntimeError(f"{what} differs from the reference: nothing was timed")


def check(noise: Noise, dtype: torch.dtype, directions: int, bits: int = 0) -> None:
    """A small layer with noise as large as its weights, so that the noise of every group is seen."""
    torch.manual_seed(0)
    told, scales = numbers(directions)
    scales = [scale / EPS for scale in scales]
    weight, x = torch.randn(70, 256).to(dtype), torch.randn(len(told), 5, 256).to(dtype)
    given = quantize(weight, bits) if bits else weight
    step = make_step(noise, told, scales)
    if step.rank:
        plain = weight.float()
        moved = [plain + s * noise.sample(STREAM, (70, 256), k) for k, s in zip(told, scales, strict=True)]
        expected = torch.stack([x[n].float() @ w.t() for n, w in enumerate(moved)])
    else:
        expected = reference.perturbed_linear(x, given, None, 0, step, STREAM)
    close(perturbed_linear(x, given, None, noise, STREAM, told, scales), expected, f"perturbed_linear {noise} {dtype}")


def layer(
    timed: Timed,
    group: str,
    operation: str,
    shape: tuple[int, int],
    tokens: int,
    dtype: torch.dtype,
    directions: int = 1,
) -> None:
    """`operation`: "F.linear", or a distribution with its rank."""
    rows, width = shape
    weight, (told, scales) = cold(rows, width, dtype), numbers(directions)
    x = torch.randn(len(told), tokens, width).to(dtype)
    size = {"moved": rows * width * dtype.itemsize, "flops": 2 * rows * width * tokens * len(told)}
    if operation == "F.linear":
        return timed(group, lambda: F.linear(x.view(-1, width), weight()), lambda: None, base=True, **size)
    distribution, _, rank = operation.partition(" rank ")
    noise = Noise(1, distribution, int(rank) if rank else None)
    timed(
        group,
        lambda: perturbed_linear(x, weight(), None, noise, STREAM, told, scales),
        lambda: check(noise, dtype, directions),
        **size,
    )


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("tokens", [16, 256])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", ["F.linear", *KINDS])
def test_linear(timed: Timed, operation: str, dtype: str, tokens: int) -> None:
    layer(timed, f"linear 3072 x 768 {dtype}, {tokens} tokens", operation, (3072, 768), tokens, DTYPES[dtype])


@pytest.mark.parametrize("tokens", [16, 64])
@pytest.mark.parametrize("operation", ["F.linear", *KINDS, *(f"{kind} rank 4" for kind in KINDS)])
def test_directions(timed: Timed, operation: str, tokens: int) -> None:
    group = f"linear 768 x 768 float32, 4 directions, both signs, {tokens} tokens each"
    layer(timed, group, operation, (768, 768), tokens, torch.float32, 4)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("operation", ["F.linear", *KINDS])
def test_quantized(timed: Timed, operation: str, bits: int) -> None:
    """The plain operation multiplies by float32 weights."""
    rows, width, tokens = 3072, 768, 16
    group = f"linear 3072 x 768 int{bits}, {tokens} tokens"
    if operation == "F.linear":
        return layer(timed, group, operation, (rows, width), tokens, torch.float32)
    weight = cold(rows, width, torch.float32)
    base = in_turn([quantize(weight(), bits) for _ in range(16)])
    x, noise = torch.randn(1, tokens, width), Noise(1, operation)

    def run() -> Tensor:
        held: QuantizedWeight = base()
        return perturbed_linear(x, held, None, noise, STREAM, [0], [EPS])

    size = {"moved": rows * width * bits // 8, "flops": 2 * rows * width * tokens}
    timed(group, run, lambda: check(noise, torch.float32, 1, bits), **size)


WAYS = ("F.linear", "straight", "registered", "packed")


@pytest.mark.parametrize("way", WAYS)
def test_dispatch(timed: Timed, way: str) -> None:
    """A layer so small that the way to the kernel is most of it: straight to the backend, through torch's dispatcher, and with
    the numbers of the step in tables, as captured and compiled functions have them.
    """
    torch.manual_seed(0)
    x, weight = torch.randn(1, 1, 64), torch.randn(64, 64)
    noise, group = Noise(1), "dispatch of linear 64 x 64, 1 token"
    step = make_step(noise, [0], [EPS])
    tables = packed(step, x.device)
    runs = {
        "F.linear": lambda: F.linear(x, weight),
        "straight": lambda: cpu.perturbed_linear(x, weight, None, 0, step, STREAM),
        "registered": lambda: torch.ops.blockzo.perturbed_linear(
            x, weight, None, 0, STREAM, 1, "rademacher", [0], [EPS]
        ),
        "packed": lambda: torch.ops.blockzo.perturbed_linear.packed(
            x, weight, None, 0, STREAM, tables.line, tables.terms, "rademacher"
        ),
    }
    run = runs[way]

    def right() -> None:
        if way != "F.linear":
            close(run(), reference.perturbed_linear(x, weight, None, 0, step, STREAM), way)

    timed(group, run, right, base=way == "F.linear")
