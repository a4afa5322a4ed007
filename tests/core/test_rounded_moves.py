"""`moved`: losses whose 16-bit moves are rounded as in place, or not at all, by sums in which the weights cancel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from blockzo.perturb import parameters

ROWS, WIDTH = 24, 64
DTYPES = (torch.bfloat16, torch.float16)


class Cancels(nn.Module):
    """Weights of 1 and inputs that sum to 0, so that the moves alone are left of a product; they are under a last place of 1."""

    def __init__(self, form: str, tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.form = form
        shape = (WIDTH, ROWS) if form == "transposed" else (ROWS, WIDTH)
        self.weight = nn.Parameter(torch.ones(shape, dtype=dtype))
        half = torch.randn(1, tokens, WIDTH // 2, generator=torch.Generator().manual_seed(1)).to(dtype)
        self.x = torch.stack((half, -half), -1).flatten(-2)

    def forward(self, x: Tensor | None = None) -> Tensor:
        x = self.x if x is None else x
        if self.form == "transposed":
            return x @ self.weight.to(x.dtype)
        weight = self.weight[4:] if self.form == "view" else self.weight
        return F.linear(x, weight.to(x.dtype))


def square(y: Tensor) -> Tensor:
    return y.float().square().mean()


def exact_loss(model: Cancels, move: Callable[[dict[str, Tensor]], None]) -> float:
    """In float64, of weights that were moved in float32."""
    held = {"weight": model.weight.detach().float()}
    move(held)
    other = copy.deepcopy(model)
    other.weight = nn.Parameter(held["weight"].double())
    with torch.no_grad():
        return float(other(model.x.double()).square().mean())


@pytest.mark.parametrize("moved", ["float32", "rounded"])
@pytest.mark.parametrize("form", ["linear", "transposed", "view", "small", "low rank", "scales"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_are_those_of_the_semantics_asked_for(
    dtype: torch.dtype, form: str, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form != "small":
        monkeypatch.setattr(parameters, "SMALL", 16)
    half = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-12
    noise = bz.Noise(5, rank=2 if form == "low rank" else None)
    more: dict[str, Any] = {"per_weight": {"weight": torch.tensor(0.9)}} if form == "scales" else {}
    directions, scales = [3, 3, 8], [1.5 * half, -1.5 * half, 2.5 * half]
    for tokens in (47, 48):
        model = Cancels(form, tokens, dtype)
        found = {
            size: bz.perturbed_losses(
                model, noise, directions, scales, lambda m=model: square(m()), max_group=size, moved=moved, **more
            )
            for size in (1, 3)
        }
        for place, (direction, scale) in enumerate(zip(directions, scales, strict=True)):

            def move(held: dict[str, Tensor], c: float = scale, d: int = direction) -> None:
                bz.perturb_(held, noise, c, d, **more)

            plain = copy.deepcopy(model)
            move({"weight": plain.weight.data})
            with torch.no_grad():
                in_place = float(square(plain()))
            exact = exact_loss(model, move)
            assert abs(in_place / exact - 1.0) > 0.1, "the two can be told apart"
            want = in_place if moved == "rounded" else exact
            assert all(abs(float(losses[place]) / want - 1.0) < 0.03 for losses in found.values()), (tokens, place)


def test_a_step_takes_the_choice_and_its_update_does_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", 16)
    results = {}
    for moved in ("auto", "float32", "rounded"):
        model = Cancels("linear", 50, torch.bfloat16)
        zo = bz.ZO(model, lambda m, _: square(m()), eps=3e-3, lr=0.1, moved=moved, max_group=1)
        result = zo.step(None)
        results[moved] = result.losses
        other = Cancels("linear", 50, torch.bfloat16)
        bz.replay_(other, [result.record])
        assert torch.equal(other.weight, model.weight)
    assert abs(results["rounded"][0] / results["float32"][0] - 1.0) > 0.1
    with pytest.raises(ValueError, match="moved is 'bf16'; expected one of auto, float32, rounded"):
        bz.ZO(model, moved="bf16")
    with pytest.raises(ValueError, match='moved is "float32" with evaluate="in_place"'):
        bz.ZO(model, moved="float32", evaluate="in_place")
