"""On a real GPU: the two products of a layer apart, right to rounding, and the same bits for a group alone and among others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.backends.gpu import products
from blockzo.ops.packed import packed
from blockzo.ops.steps import make_step
from tests.cpu.cases import SEED, same_bits
from tests.interpret import gaussian_bounds as bounds

DIRECTIONS, SCALES = [2, 5, 2, 5, 7, 2, 8, 8, 9], [0.05, 0.1, -0.05, -0.1, 0.1, 0.02, 0.1, 0.0, 0.1]


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
# each is compiled anew
@pytest.mark.parametrize(
    ("dtype", "distribution", "tokens"),
    [
        (torch.bfloat16, "rademacher", 5),
        (torch.float16, "rademacher", 20),
        (torch.bfloat16, "rademacher", 64),
        (torch.bfloat16, "gaussian", 5),
    ],
    ids=str,
)
def test_products(dtype: torch.dtype, distribution: str, tokens: int, shared: bool) -> None:
    groups, rows, width = len(DIRECTIONS), 200, 2050
    weight = torch.randn(rows, 2176, device="cuda").to(dtype)[:, :width]
    x = torch.randn(1 if shared else groups, tokens, width, device="cuda").to(dtype).expand(groups, tokens, width)
    bias = torch.randn(groups, rows, device="cuda").to(dtype)
    step = make_step(Noise(SEED, distribution), DIRECTIONS, SCALES)
    found = products.products(x, weight, bias, 512, step, 9)
    on_cpu = [tensor.cpu().float() for tensor in (x, weight, bias)]
    want = reference.perturbed_linear(on_cpu[0], weight.cpu(), on_cpu[2], 512, step, 9)
    # at most twice the error of torch's own product of the weight as it is
    exact = [(a.double() @ on_cpu[1].double().T + b.double()) for a, b in zip(on_cpu[0], on_cpu[2], strict=True)]
    plain = [(a @ weight.T + b).cpu().double() for a, b in zip(x, bias, strict=True)]
    allowed = 2 * max(float((a - b).abs().max()) for a, b in zip(plain, exact, strict=True))
    assert float((found.cpu().double() - want.double()).abs().max()) <= allowed
    assert same_bits(found.cpu(), products.products(x.contiguous(), weight, bias, 512, step, 9).cpu())
    tables = packed(step, torch.device("cuda"))
    assert same_bits(found.cpu(), products.products(x, weight, bias, 512, tables, 9).cpu())
    for group, (direction, scale) in enumerate(zip(DIRECTIONS, SCALES, strict=True)):
        alone = make_step(Noise(SEED, distribution), [direction], [scale])
        single = products.products(x[group : group + 1], weight, bias[group], 512, alone, 9)
        assert same_bits(found[group].cpu(), single[0].cpu()), group


def test_gaussian_numbers_are_as_near_to_the_contract_as_stated() -> None:
    words = bounds.some_words()
    out = torch.empty(len(words), 2, device="cuda")
    bounds.pairs[(len(words) // 1024,)](out, torch.from_numpy(words.view(np.int32)).cuda(), SIZE=1024)
    apart = np.abs(out.cpu().numpy() - bounds.contract_pairs(words))
    assert (apart <= bounds.farthest_allowed(words)).all(), apart.max()
