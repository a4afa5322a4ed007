"""Weights of odd kinds: without elements, without a shape yet, made in inference mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from tests.core.test_reuse import expected_losses
from tests.core.test_stale import Net, X


def loss(m: nn.Module, x: Tensor) -> Tensor:
    return m(x)


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
def test_a_weight_without_elements(evaluate: str) -> None:
    model = Net()
    model.none, model.one = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.tensor(1.5))
    before = copy.deepcopy(model)

    def both(m: nn.Module, x: Tensor) -> Tensor:
        return m(x) * m.one + m.none.sum() + torch.cat([m.none, m.none * 2]).sum()

    zo = bz.ZO(model, both, bz.MeZO(), bz.Blocks(model, []), eps=1e-2, evaluate=evaluate)
    result = zo.step(X)
    assert result.losses == pytest.approx(expected_losses(before, zo, result, both, X), rel=1e-5)


def test_a_lazy_module_is_refused_in_words() -> None:
    model = Net()
    model.last = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="'last.weight' has no shape yet.*run the model once"):
        bz.ZO(model, loss, bz.MeZO())
    with torch.no_grad():
        model(X)
    bz.ZO(model, loss, bz.MeZO()).step(X)


@pytest.mark.parametrize("method", [bz.MeZO(), bz.SPSA(4)], ids=str)
def test_weights_made_in_inference_mode(method: bz.SPSA) -> None:
    with torch.inference_mode():
        model = Net()
    plain = Net()
    zo = bz.ZO(model, loss, method, lr=1e-2, eps=1e-2)
    other = bz.ZO(plain, loss, method, lr=1e-2, eps=1e-2)
    for _ in range(2):
        assert zo.step(X).losses == other.step(X).losses
    assert bz.digest(model) == bz.digest(plain)
