"""Frozen weights that are made of other tensors, as torchao's are, beside trained ones: these are moved, as in copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import blockzo as bz
from blockzo.perturb.groups import perturbed_losses

NOISE = bz.Noise(2, "gaussian")


class Scaled(torch.Tensor):
    """8 bits and a scale, dequantised by whatever reads it."""

    q: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, q: torch.Tensor, scale: torch.Tensor) -> Scaled:
        found: Scaled = torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=scale.dtype)  # type: ignore[attr-defined]
        found.q, found.scale = q, scale
        return found

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["q", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *rest: Any) -> Scaled:
        return Scaled(inner["q"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].q, args[0].scale)
        plain = tree_map_only(cls, lambda held: held.q.to(held.scale.dtype) * held.scale, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


class Adapted(nn.Module):
    """A frozen layer whose weight has no memory of its own, and a narrow one beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width)
        held = Scaled((self.base.weight.detach() * 500).to(torch.int8), torch.tensor(0.002))
        self.base.weight = nn.Parameter(held, requires_grad=False)
        self.base.bias.requires_grad_(False)
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.base(x) + self.up(self.down(x)))


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_trained_beside_them_is_moved(size: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Adapted(16), Adapted(16)).eval(), torch.randn(5, 16)
    before = bz.digest(model)
    found = perturbed_losses(model, NOISE, [1, 1], [0.05, -0.05], lambda: loss(model, x), max_group=size)
    expected = []
    for scale in (0.05, -0.05):
        other = nn.Sequential(Adapted(16), Adapted(16)).eval()
        for one, two in zip(other, model, strict=True):
            one.load_state_dict(
                {name: t for name, t in two.state_dict().items() if name != "base.weight"}, strict=False
            )
            one.base.weight = two.base.weight
        bz.perturb_(other, NOISE, scale, 1)
        with torch.no_grad():
            expected.append(float(loss(other, x)))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0)
    assert abs(expected[0] - expected[1]) > 1e-4
    # the check of the first step tries every way of reading a weight
    zo = bz.ZO(model, loss, bz.SPZO(1, 2), bz.Blocks(model, [1]), lr=1e-2, eps=1e-2)
    zo.step(x)
    assert bz.digest(model) != before
