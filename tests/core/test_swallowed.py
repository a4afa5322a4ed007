"""A loss function that catches errors and goes on cannot make another loss of an evaluation without a word."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from tests.core.test_reuse import expected_losses

BATCHES = [torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)) * 0.3 for seed in range(6)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.between(layer(x))
        return self.head(x).logsumexp(-1).pow(2).mean()

    def between(self, x: Tensor) -> Tensor:
        return x


class Branches(Net):
    """Alike for all weights near the first, and not for those far off."""

    def forward(self, x: Tensor) -> Tensor:
        far = x.abs().max() > 10
        x = x.clamp(-1, 1)
        for layer in self.layers:
            x = layer(x)
            if far and x.sum() > 0:
                x = 1.5 * x
        return self.head(x).logsumexp(-1).pow(2).mean()


class Looks(Net):
    """A number is asked for, of some batches only."""

    def forward(self, x: Tensor) -> Tensor:
        far = bool(x.abs().max() > 10)
        x = x.clamp(-1, 1)
        for layer in self.layers:
            x = layer(x)
            try:
                x = x * (1 + x.mean().item()) if far else x
            except RuntimeError:
                pass
        return self.head(x).logsumexp(-1).pow(2).mean()


def guarded(m: nn.Module, x: Tensor) -> Any:
    try:
        return m(x)
    except Exception:
        return (m.head.weight * 0).sum() + 7.0


def plain(m: nn.Module, x: Tensor) -> Any:
    return m(x)


def rows(m: nn.Module, x: Tensor) -> Any:
    """Row by row, with another loss for those that fail: more calls in one batch than in another."""
    total: Any = 0.0
    for row in x.split(1):
        try:
            total = total + m(row)
        except Exception:
            total = total + 100.0
    return total / len(x)


def far(x: Tensor) -> Tensor:
    return torch.cat([x[:-1], x[-1:] + 20])


@pytest.mark.parametrize(
    ("kind", "loss", "method", "cut", "batches"),
    [
        (Branches, guarded, bz.SPSA(4), [], [BATCHES[0], *map(far, BATCHES[1:])]),
        (Looks, plain, bz.SPSA(4), [], [BATCHES[0], *map(far, BATCHES[1:])]),
        (Net, rows, bz.SPZO(1, 2), [2], [BATCHES[0][:1], BATCHES[0], BATCHES[1][:2]]),
    ],
    ids=["branches", "numbers", "calls"],
)
def test_losses_are_those_of_the_model(
    kind: Any, loss: Callable[..., Any], method: Any, cut: Any, batches: Any
) -> None:
    model = kind()
    blocks = bz.Blocks(model, cut, layers="layers", example={"x": BATCHES[0]})
    zo = bz.ZO(model, loss, method, blocks, lr=1e-3, eps=5e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in batches:
            before = copy.deepcopy(model)
            result = zo.step(batch)
            assert result.losses == pytest.approx(expected_losses(before, zo, result, loss, batch), rel=1e-5)


class Clamps(Net):
    def between(self, x: Tensor) -> Tensor:
        try:
            self.head.weight.data.clamp_(-0.1, 0.1)
        except ValueError:
            pass
        return x


def test_a_refusal_that_is_caught_is_raised_all_the_same() -> None:
    model = Clamps()
    with pytest.raises(ValueError, match='evaluate="in_place"'):
        bz.ZO(model, plain, bz.MeZO()).step(BATCHES[0])
    with pytest.raises(ValueError, match="'clamp_' on parameter 'head.weight' inside a perturbed forward"):
        bz.perturbed_losses(model, bz.Noise(1), [0], [1e-3], lambda: model(BATCHES[0]))
    # who enters a perturbed forward may catch with a mind, and has its gradients back
    with bz.perturbed(model, bz.Noise(1), directions=[0], scales=[1e-3]):
        model(BATCHES[0])
    assert torch.is_grad_enabled()


def test_what_the_model_catches_of_its_own_is_its_own() -> None:
    class Tries(Net):
        def between(self, x: Tensor) -> Tensor:
            try:
                return x @ x
            except RuntimeError:
                return 0.9 * x

    model = Tries()
    before = copy.deepcopy(model)
    zo = bz.ZO(model, plain, bz.MeZO(), eps=1e-2, max_group=1)
    result = zo.step(BATCHES[0])
    assert result.losses == pytest.approx(expected_losses(before, zo, result, plain, BATCHES[0]), rel=1e-5)
