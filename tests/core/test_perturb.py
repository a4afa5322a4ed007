"""The perturbed forward equals the forward of a moved copy, and writes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import blockzo as bz
from blockzo import perturb
from tests.core import zoo

NOISE = bz.Noise(11, "gaussian")


def moved_copy(model: nn.Module, scale: float, direction: int = 0) -> nn.Module:
    other = copy.deepcopy(model)
    bz.perturb_(other, NOISE, scale, direction)
    return other


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_a_moved_copy(name: str, dtype: torch.dtype) -> None:
    model, batch = zoo.make(name).to(dtype), zoo.batch()
    before = bz.digest(model)
    with torch.no_grad():
        plain, expected = model(**batch).logits, moved_copy(model, 0.1, 3)(**batch).logits
        with bz.perturbed(model, NOISE, [3], [0.1]):
            found = model(**batch).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)
    assert bz.digest(model) == before


@pytest.mark.parametrize("panel", [1, 64, 1000])
def test_row_panels(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturb, "PANEL_BYTES", panel)
    model, batch = zoo.make("opt"), zoo.batch()
    with torch.no_grad(), bz.perturbed(model, NOISE, [0], [0.1]):
        found = model(**batch).logits
    with torch.no_grad():
        expected = moved_copy(model, 0.1)(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_stay_where_they_are() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    with torch.no_grad(), bz.perturbed(model, NOISE, [0], [0.1]):
        found = model(**batch).logits
    with torch.no_grad():
        assert torch.equal(found, moved_copy(model, 0.1)(**batch).logits)


class Uses(nn.Module):
    """Every way of using a parameter that the special cases must not get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(6))
        self.table = nn.Parameter(torch.randn(5, 4))
        self.fused = nn.Parameter(torch.randn(12, 4))
        self.kernel = nn.Parameter(torch.randn(3, 4, 2))
        self.query = self.fused.detach()[4:8]  # a view made long before the forward

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        ids = torch.tensor([[0, 4], [1, 1]])
        return [
            F.linear(x, self.weight, self.bias),
            F.linear(x, self.weight[1:3]),
            F.linear(x, self.weight[torch.tensor([5, -1, 0])], self.bias[[0, 1, 2]]),
            x @ self.weight.t() + self.bias,
            torch.addmm(self.bias, x, self.weight.T),
            F.embedding(ids, self.table),
            F.embedding(ids.repeat(5, 1), self.table),
            self.table.index_select(0, ids.flatten()),
            self.table[ids],
            self.table[1],
            self.table[torch.tensor([True, False, True, False, True])],
            torch.cat([self.weight, self.table]),
            torch.stack([self.bias, self.bias * 2]),
            F.layer_norm(x, (4,), self.table[0], self.table[1]),
            x @ self.query.t(),
            torch.einsum("bi,oi->bo", x, self.weight),
            F.conv1d(x.unsqueeze(-1).expand(-1, -1, 5), self.kernel),
            self.weight.data.sum(),
            torch.chunk(self.fused, 3)[1] @ x.t(),
            x.new_zeros(self.weight.shape) + self.weight.norm(),
        ]


def test_every_use_of_a_parameter() -> None:
    torch.manual_seed(0)
    model, x = Uses(), torch.randn(3, 4)
    other = Uses()
    other.load_state_dict(model.state_dict())
    bz.perturb_(other, NOISE, 0.5)
    with bz.perturbed(model, NOISE, [0], [0.5]):
        found = model(x)
    with torch.no_grad():
        for number, (a, b) in enumerate(zip(found, other(x), strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=f"use {number}")


@pytest.mark.parametrize("act", ["add", "data_ptr", "out"])
def test_writing_a_weight_is_refused(act: str) -> None:
    model = nn.Linear(3, 3)
    before = bz.digest(model)
    with bz.perturbed(model, NOISE, [0], [0.1]), pytest.raises(ValueError, match="in_place"):
        if act == "add":
            model.weight.add_(1)
        elif act == "data_ptr":
            model.weight.data_ptr()
        else:
            torch.add(model.weight, 1, out=torch.empty(3, 3))
    assert bz.digest(model) == before


def test_a_view_across_two_parameters_is_refused() -> None:
    flat = torch.randn(8)
    model = nn.Module()
    model.a, model.b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    with bz.perturbed(model, NOISE, [0], [0.1]), pytest.raises(ValueError, match="shares memory"):
        flat.sum()


def test_one_direction_at_a_time() -> None:
    with pytest.raises(ValueError, match="one direction"), bz.perturbed(nn.Linear(2, 2), NOISE, [0, 1], [1.0, 1.0]):
        pass


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
def test_flops_are_those_of_torchs_counter(name: str) -> None:
    model, batch = zoo.make(name), zoo.batch()
    with torch.no_grad():
        # torch does not count its CPU flash attention; the composed form it does
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**batch)
        with bz.perturbed(model, NOISE, [0], [0.1]) as mode:
            model(**batch)
    assert mode.flops == counter.get_total_flops() > 0
