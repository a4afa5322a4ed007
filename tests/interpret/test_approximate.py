"""Gaussian numbers of products by the special-function unit, against the contract's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor

from blockzo.kernels import approximate
from blockzo.noise import Noise, gaussian_word, noise_range
from blockzo.ops.backends.gpu import products
from blockzo.ops.steps import make_step
from tests.cpu.cases import SEED
from tests.interpret import gaussian_bounds as bounds
from tests.interpret.test_linear import exact, normal

HALVES = bounds.HALVES


def with_errors(signs: tuple[int, ...]) -> dict[str, Callable[[Any], Any]]:
    """The four instructions, each as far off as the manual allows, in these directions."""
    log2, root, sine, cosine = signs

    def logarithm(x: Any) -> Any:
        right = tl.log2(x)
        return right + log2 * tl.where(x > 0.5, bounds.LOG2, tl.abs(right) * bounds.LOG2)

    return {
        "log2": logarithm,
        "sqrt": lambda x: tl.sqrt(x) * (1 + root * bounds.SQRT),
        "sin": lambda x: tl.sin(x) + sine * bounds.TURN,
        "cos": lambda x: tl.cos(x) + cosine * bounds.TURN,
    }


@pytest.mark.parametrize("signs", [(0, 0, 0, 0), *product((1, -1), repeat=4)], ids=str)
def test_as_near_to_the_contract_as_stated(signs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, instruction in with_errors(signs).items():
        monkeypatch.setattr(approximate, name, instruction)
    words = bounds.some_words()
    out = torch.empty(len(words), 2)
    bounds.pairs[(1,)](out, torch.from_numpy(words.view(np.int32)), SIZE=len(words))
    apart = np.abs(out.numpy() - bounds.contract_pairs(words))
    assert (apart <= bounds.farthest_allowed(words)).all()
    # the interpreter's own functions are nearly exact; the errors above are of the size that is stated
    assert apart.max() < 7e-6 if signs[0] == 0 else apart.max() > 3e-5


def test_the_bounds_are_those_of_the_contract() -> None:
    found = noise_range(0, 4096, SEED, "gaussian", 9, 3, torch.device("cpu")).numpy().reshape(-1, 2)
    words = gaussian_word(torch.arange(0, 4096, 2), SEED, 9, 3).numpy().astype(np.uint32)
    assert (bounds.contract_pairs(words).view(np.int32) == found.view(np.int32)).all()


# 20 s of CPU time
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_word(every: bool) -> None:
    """The figures of docs/gpu.md. The short form leaves out most low halves, but not those of the least and largest radius."""
    halves = HALVES if every else HALVES[(HALVES % 512 == 0) | (HALVES < 64) | (HALVES >= 65536 - 64)]
    worst = bounds.differences(halves)
    assert 4.2e-5 < worst.farthest <= bounds.FARTHEST
    assert 1.0e-5 < worst.elsewhere <= bounds.ELSEWHERE
    if every:
        # of each size of an angle there are four, two with either sign
        assert worst.count * 4 == 2 << 32
        assert worst.bfloat16 < 2.3e-3 * worst.count and worst.float16 < 1.42e-2 * worst.count


def test_which_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal(1, 3, 128, dtype=torch.float16, seed=2), normal(32, 128, dtype=torch.float16, seed=1)

    def layer(distribution: str) -> tuple[Tensor, Tensor]:
        step = make_step(Noise(SEED, distribution), [3], [0.5])
        return products.products(x, weight, None, 0, step, 9), exact(x, weight, None, 0, step, 9)

    asked: list[bool] = []
    plain = products._plan
    monkeypatch.setattr(
        products, "_plan", lambda *told: asked.append(plain(*told).options["APPROXIMATE"]) or plain(*told)
    )
    for value in ("approximate", "exact", ""):
        monkeypatch.setenv("BLOCKZO_PRODUCT_NOISE", value)
        found, want = layer("gaussian")
        assert (found.double() - want).abs().max() < 2**-11 * want.abs().max() + 5e-3
    layer("rademacher")
    assert asked == [True, False, True, False]
    monkeypatch.setenv("BLOCKZO_PRODUCT_NOISE", "fast")
    with pytest.raises(ValueError, match="BLOCKZO_PRODUCT_NOISE is 'fast'; expected 'approximate' or 'exact'"):
        layer("gaussian")
