"""Losses that change the model for a call and back after it, with no `finally`: an evaluation may be left inside of the call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.perturb.standing import Standing
from tests.core.test_reuse import expected_losses

BATCHES = [torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows)) for rows in (3, 80)]
MODE = {"scale": 1.0}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.side, self.off = nn.Linear(6, 6), nn.Linear(6, 6), False

    def forward(self, x: Tensor) -> Tensor:
        return MODE["scale"] * torch.tanh(self.inner(x) + (0.0 if self.off else self.side(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(4)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x).logsumexp(-1).pow(2).mean()


def reference(m: Any, x: Tensor) -> Tensor:
    """As a reference model is made of one with adapters."""
    policy = m(x)
    for layer in m.layers:
        layer.off = True
    without = m(x)
    for layer in m.layers:
        layer.off = False
    return (policy - without).sigmoid() + policy


def tied_for_a_call(m: Any, x: Tensor) -> Tensor:
    weight, other = m.layers[0].inner.weight, m.layers[1].inner.weight
    m.layers[0].inner.weight = other
    loss = m(x)
    m.layers[0].inner.weight = weight
    return loss


def another_layer(m: Any, x: Tensor) -> Tensor:
    first = m.layers[3].inner
    m.layers[3].inner = m.layers[3].side
    loss = m(x)
    m.layers[3].inner = first
    return loss


def hooked(m: Any, x: Tensor) -> Tensor:
    handle = m.layers[3].register_forward_hook(lambda module, args, output: 0.5 * output)
    loss = m(x)
    handle.remove()
    return loss


def beside_the_model(m: Any, x: Tensor) -> Tensor:
    policy = m(x)
    MODE["scale"] = 0.5
    other = m(x)
    MODE["scale"] = 1.0
    return policy + (policy - other).pow(2)


def read_before_it_is_set_back(m: Any, x: Tensor) -> Tensor:
    """The first thing that an evaluation reads is what one that was left has changed."""
    scale = MODE["scale"]
    MODE["scale"] = 0.5
    loss = scale * m(x)
    MODE["scale"] = 1.0
    return loss


LOSSES = (reference, tied_for_a_call, another_layer, hooked, beside_the_model, read_before_it_is_set_back)


@pytest.mark.parametrize("max_group", [1, "auto"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_losses_are_those_of_moved_copies_and_the_model_is_as_it_was(
    loss: Callable[..., Tensor], max_group: Any
) -> None:
    for batch in BATCHES:
        model = Net()
        before, parts = copy.deepcopy(model), [(name, id(part)) for name, part in model.named_modules()]
        parameters = {name: id(p) for name, p in model.named_parameters()}
        zo = bz.ZO(model, loss, bz.SPZO(1, 4), bz.Blocks(model, [2]), lr=1e-3, eps=1e-2, seed=5, max_group=max_group)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = zo.step(batch)
        assert MODE["scale"] == 1.0 and zo.reuse.reason is None
        assert result.losses == pytest.approx(expected_losses(before, zo, result, loss, batch), rel=1e-5)
        assert parameters == {name: id(p) for name, p in model.named_parameters()}
        assert parts == [(name, id(part)) for name, part in model.named_modules()]
        assert not any(part._forward_hooks or getattr(part, "off", False) for part in model.modules())


def alone(m: Any, x: Tensor) -> Tensor:
    """In a group it fails in the midst of its call."""
    scale = MODE["scale"]
    MODE["scale"] = 0.5
    loss = scale * m(x)
    loss = loss + 0 * len(torch.unique(loss.detach()).tolist())
    MODE["scale"] = 1.0
    return loss


@pytest.mark.parametrize("loss", [read_before_it_is_set_back, alone], ids=lambda f: f.__name__)
def test_a_group_that_is_stopped_leaves_nothing_to_the_next(loss: Callable[..., Tensor]) -> None:
    """Batches grow out of what was measured, and past the rows that are worth a group."""
    model = Net()
    zo = bz.ZO(model, loss, bz.SPSA(3), lr=1e-3, eps=1e-2, seed=5)
    for rows in (3, 3, 20, 50, 80, 80, 3):
        batch, before = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows)), copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = zo.step(batch)
        assert result.losses == pytest.approx(expected_losses(before, zo, result, loss, batch), rel=1e-5)


def test_what_comes_and_goes_is_no_switch() -> None:
    model = Net()
    standing = Standing(model)
    model.layers[0].seen = torch.ones(3)  # type: ignore[assignment]
    assert not standing.put_back()
    model.layers[0].off, model.layers[1].bias = True, nn.Parameter(torch.ones(2))  # type: ignore[assignment]
    assert standing.put_back()
    assert model.layers[0].off is False and not hasattr(model.layers[1], "bias")
