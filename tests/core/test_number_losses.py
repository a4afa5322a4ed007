"""Losses that are Python numbers or NumPy arrays: the steps of tensors, and what stays refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import blockzo as bz

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def tensor(net: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return net(rows).square().mean()


KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "float": float,
    "numpy scalar": lambda loss: loss.numpy()[()],
    "array of one": lambda loss: loss.numpy().reshape(1),
}


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_tensor(kind: str, evaluate: str) -> None:
    found = []
    for loss in (tensor, lambda net, rows: KINDS[kind](tensor(net, rows))):
        own = model()
        zo = bz.ZO(
            own,
            loss,
            method=bz.SPZO(outer=1, inner=3),
            blocks=bz.Blocks(own, [1]),
            lr=1e-2,
            evaluate=evaluate,
            max_group=1,
        )
        found.append([zo.step(ROWS).losses for _ in range(2)] + [bz.digest(own)])
    assert found[0] == found[1]


def test_evaluations_run_one_after_the_other_and_that_is_said() -> None:
    own = model()
    other = copy.deepcopy(own)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses = (
            bz.ZO(own, lambda net, rows: float(tensor(net, rows)), method=bz.SPSA(3), max_group=4).step(ROWS).losses
        )
    assert any("its evaluations run one after the other" in str(one.message) for one in told)
    assert losses == bz.ZO(other, tensor, method=bz.SPSA(3), max_group=1).step(ROWS).losses


def test_a_loss_that_cannot_be_continued_is_found_out_from_its_numbers() -> None:
    """It uses a hidden state of the first block beside what that block leaves."""
    own = model()
    held: list[torch.Tensor] = []
    own[0].register_forward_hook(lambda *call: held.append(call[2]))  # type: ignore[index]

    def loss(net: torch.nn.Module, rows: torch.Tensor) -> float:
        found = tensor(net, rows)
        return float(found + 10 * held[-1].square().mean())

    zo = bz.ZO(own, loss, method=bz.SPZO(outer=1, inner=2), blocks=bz.Blocks(own, [2]), max_group=1)
    with pytest.warns(UserWarning, match="cannot continue from kept activations"):
        zo.step(ROWS)


@pytest.mark.parametrize("loss", ["text", None, True, np.ones(3), [1.0, 2.0], {"loss": 1.0, "other": 2.0}])
def test_other_losses_stay_refused(loss: Any) -> None:
    own = model()
    before = bz.digest(own)
    with pytest.raises(ValueError, match="loss_fn returned"):
        bz.ZO(own, lambda net, rows: loss, max_group=1).step(ROWS)
    assert bz.digest(own) == before


@pytest.mark.parametrize("loss", [float("nan"), np.float32("inf")])
def test_numbers_that_are_not_finite_are_refused(loss: Any) -> None:
    own = model()
    with pytest.raises(ValueError, match="expected a finite number"):
        bz.ZO(own, lambda net, rows: loss, max_group=1).step(ROWS)
