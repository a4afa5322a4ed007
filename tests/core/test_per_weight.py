"""Perturbed forwards whose noise has a scale for every weight, against weights that are written with the same scales."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from blockzo.ops.per_weight import PerWeight
from blockzo.perturb import traced


class Net(nn.Module):
    """Tied table and head, a transposed weight, a slice of one, small parameters and large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 64)
        self.up = nn.Linear(64, 300)
        self.turned = nn.Parameter(torch.randn(300, 64) / 17)
        self.norm = nn.LayerNorm(64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + torch.tanh(self.up(self.norm(x))) @ self.turned
        x = x + F.linear(x, self.up.weight[10:74])
        return F.linear(x, self.table.weight)


@pytest.fixture(autouse=True)
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockzo.perturb.parameters.SMALL", 1000)


def made(dtype: torch.dtype) -> tuple[Net, Tensor]:
    torch.manual_seed(3)
    return Net().to(dtype).eval(), torch.randint(0, 300, (4, 9))


def scales(net: Net) -> PerWeight:
    return {
        "table.weight": net.table.weight.detach().abs() < 0.5,
        "up.weight": torch.rand(64),
        "up.bias": 0.0,
        "turned": torch.rand(300, 64) * (torch.rand(300, 64) < 0.5),
        "norm.weight": 3.0,
    }


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_forward_is_that_of_written_weights(dtype: torch.dtype, rank: int | None) -> None:
    net, ids = made(dtype)
    noise, per_weight = bz.Noise(4, "gaussian", rank), scales(net)
    moved = copy.deepcopy(net)
    bz.perturb_(moved, noise, 0.05, 3, per_weight=per_weight)
    before = bz.digest(net)
    with bz.perturbed(net, noise, [3], [0.05], per_weight=per_weight):
        found = net(ids)
    assert bz.digest(net) == before
    bound = (1e-5 if dtype == torch.float32 else 0.02) * float(found.abs().max())
    torch.testing.assert_close(found, moved(ids), rtol=0, atol=bound)
    unscaled = copy.deepcopy(net)
    bz.perturb_(unscaled, noise, 0.05, 3)
    assert (found - unscaled(ids)).abs().max() > 10 * (found - moved(ids)).abs().max()


@pytest.mark.filterwarnings("ignore:the model hands parameter")
def test_groups_are_single_evaluations() -> None:
    net, ids = made(torch.float32)
    noise, per_weight = bz.Noise(4), scales(net)
    directions, sizes = [0, 0, 1, 2], [0.1, -0.1, 0.1, 0.0]
    losses = bz.perturbed_losses(
        net, noise, directions, sizes, lambda: net(ids).square().mean(), max_group=4, per_weight=per_weight
    )
    for direction, size, loss in zip(directions, sizes, losses.tolist(), strict=True):
        moved = copy.deepcopy(net)
        bz.perturb_(moved, noise, size, direction, per_weight=per_weight)
        assert loss == pytest.approx(float(moved(ids).square().mean().detach()), rel=1e-5)


def test_rows_and_copies_have_the_bits_of_written_weights() -> None:
    net, ids = made(torch.bfloat16)
    noise, per_weight = bz.Noise(4, "gaussian"), scales(net)
    moved = copy.deepcopy(net)
    bz.perturb_(moved, noise, 0.05, per_weight=per_weight)
    with bz.perturbed(net, noise, [0], [0.05], per_weight=per_weight):
        rows, norm = net.table(ids), net.norm.weight * 1
        part = net.table.weight[7:60][torch.tensor([0, 0, 52])]
    assert torch.equal(rows, moved.table(ids)) and torch.equal(norm, moved.norm.weight)
    assert torch.equal(part, moved.table.weight[torch.tensor([7, 7, 59])])


def test_what_is_refused() -> None:
    net, _ = made(torch.float32)
    mode = bz.perturbed(net, bz.Noise(1), per_weight={"turned": 0.5})
    with (
        pytest.raises(ValueError, match="scales or a low rank, which a compiled forward does not make"),
        torch.no_grad(),
    ):
        traced.call(mode, F.linear, (torch.ones(1, 64), net.turned), {})
    with pytest.raises(ValueError, match="'v', which is no parameter here"):
        bz.perturbed(net, bz.Noise(1), per_weight={"v": 0.5})
    with pytest.raises(ValueError, match="'v', which is no parameter here"):
        bz.perturbed_losses(net, bz.Noise(1), [0], [0.1], lambda: torch.zeros(()), per_weight={"v": 0.5})
