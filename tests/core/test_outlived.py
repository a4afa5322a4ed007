"""Tensors of a group that something keeps: nobody could read them once the group has run, so such evaluations run alone."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.perturb.grouping import Known
from blockzo.perturb.groups import perturbed_losses
from tests.core.test_groups import NOISE, alone


class Showing(nn.Linear):
    """Leaves what it computed for whoever wants to look at it."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        self.seen = {"last": [found]}
        return found.sum()


@pytest.mark.parametrize("where", ["model", "loss"])
def test_what_keeps_tensors_runs_alone_and_leaves_plain_ones(where: str) -> None:
    """A tensor of a group cannot be read, copied or saved once the group has run."""
    model, x, logs = Showing(4, 4) if where == "model" else nn.Linear(4, 4), torch.randn(3, 4), {}

    def loss() -> Tensor:
        logs["loss"] = model(x).sum()
        return logs["loss"] if where == "loss" else logs.pop("loss")

    who = "seen" if where == "model" else "something beside the model"
    with pytest.warns(UserWarning, match=f"cannot be evaluated in groups .{who} holds a tensor of a group"):
        found = perturbed_losses(model, NOISE, [0, 1, 2], [0.5] * 3, loss, max_group=3)
    expected = [alone(model, d, 0.5, lambda m: m(x).sum()) for d in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected))
    left = model.seen["last"][0].sum() if where == "model" else logs["loss"]
    assert float(left) == float(found[-1])
    copy.deepcopy(model)


def test_every_kind_of_evaluation_is_looked_at() -> None:
    """The first groups are of the first block; the loss comes later."""
    torch.manual_seed(0)
    model, logs = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), {}

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        logs["loss"] = m(x).square().mean()
        return logs["loss"]

    zo = bz.ZO(model, loss, bz.SPZO(2, 2), max_group=8)
    with pytest.warns(UserWarning, match="holds a tensor of a group"):
        result = zo.step(torch.randn(3, 4))
    assert any(abs(float(logs["loss"]) - found) < 1e-6 for found in result.losses)


def test_what_a_cycle_holds_is_not_kept() -> None:
    class Cycle:
        pass

    model, x = nn.Linear(4, 4), torch.randn(3, 4)

    def loss() -> Tensor:
        held = Cycle()
        held.own, held.out = held, model(x)
        return held.out.sum()

    gc.disable()
    try:
        perturbed_losses(model, NOISE, [0, 1, 2], [0.5] * 3, loss, max_group=3)
    finally:
        gc.enable()
    assert not Known.of(model).alone
