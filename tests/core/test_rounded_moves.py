"""`moved`: losses whose 16-bit moves are rounded as in place, or not at all, by sums in which the weights cancel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from blockzo.contract import MOVED
from blockzo.optim import executor
from blockzo.optim.step import step_seed
from blockzo.perturb import Move, functions, parameters

ROWS, WIDTH = 24, 64
DTYPES = (torch.bfloat16, torch.float16)


def by_factors(x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(x.new_zeros(ROWS), x[0], weight.t(), beta=0.5, alpha=2.0)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "transposed": lambda x, weight: x @ weight,
    "view": lambda x, weight: F.linear(x, weight[4:]),
    "columns": lambda x, weight: x @ weight[:, 4:],
    "strided": F.linear,
    "vector": lambda x, weight: weight @ x[0, 1],
    "batch": lambda x, weight: torch.matmul(weight, x.transpose(1, 2)),
    "factors": by_factors,
    "cast": lambda x, weight: F.linear(x.double(), weight.to(torch.float64)),
    "both": lambda x, weight: x @ weight.t(),
}
"""Products of weights [ROWS, WIDTH], in "transposed" and "columns" of [WIDTH, ROWS]. Those of "strided" lie along columns, and in
"both" x is moved too."""


class Cancels(nn.Module):
    """Weights of 1 and inputs that sum to 0, so that the moves alone are left of a product; they are under a last place of 1."""

    def __init__(self, form: str, tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.product = FORMS[form]
        ones = torch.ones((WIDTH, ROWS) if form in ("transposed", "columns", "strided") else (ROWS, WIDTH), dtype=dtype)
        self.weight = nn.Parameter(ones.t() if form == "strided" else ones)
        half = torch.randn(1, tokens, WIDTH // 2, generator=torch.Generator().manual_seed(1)).to(dtype)
        x = torch.stack((half, -half), -1).flatten(-2)
        self.x = nn.Parameter(x[0]) if form == "both" else x

    def forward(self) -> Tensor:
        return self.product(self.x, self.weight)


def square(y: Tensor) -> Tensor:
    return y.float().square().mean()


def moved_by(model: Cancels, move: Callable[[dict[str, Tensor]], None], dtype: torch.dtype | None) -> float:
    """Of weights that were moved in place; moved in float32 and multiplied in float64 where there is no dtype."""
    other = copy.deepcopy(model)
    held = {name: p.detach().float() if dtype is None else p.data for name, p in other.named_parameters()}
    move(held)
    if dtype is None:
        for name, value in held.items():
            setattr(other, name, nn.Parameter(value.double()))
        if "x" not in held:
            other.x = other.x.double()
    with torch.no_grad():
        return float(other().double().square().mean())


CASES = [
    *((form, form) for form in FORMS),
    ("small", "linear"),
    ("low rank", "linear"),
    ("low rank columns", "columns"),
]
CASES += [("small both", "both"), ("scales", "linear"), ("scaled columns", "columns")]


@pytest.mark.parametrize("moved", ["float32", "rounded"])
@pytest.mark.parametrize(("case", "form"), CASES, ids=[case for case, _ in CASES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_are_those_of_the_semantics_asked_for(
    dtype: torch.dtype, case: str, form: str, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "small" not in case:
        monkeypatch.setattr(parameters, "SMALL", 16)
    half = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-12
    noise = bz.Noise(5, rank=2 if "low rank" in case else None)
    more: dict[str, Any] = {"per_weight": {"weight": torch.tensor(0.9)}} if "scale" in case else {}
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

            in_place, exact = moved_by(model, move, dtype), moved_by(model, move, None)
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
    zo.moved = "float32"
    other = bz.ZO(Cancels("linear", 50, torch.bfloat16), zo.loss_fn, eps=3e-3, moved="float32", max_group=1)
    other.step_number = zo.step_number
    bz.replay_(other.model, [result.record])
    assert zo.estimate(None).losses == other.estimate(None).losses
    with pytest.raises(ValueError, match="moved is 'bf16'; expected one of auto, float32, rounded"):
        bz.ZO(model, moved="bf16")
    with pytest.raises(ValueError, match='moved is "float32" with evaluate="in_place"'):
        bz.ZO(model, moved="float32", evaluate="in_place")


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"max_group": 1},
    "groups": {"method": bz.SPSA(2), "max_group": 4},
    "own directions": {"per_example": True},
    "micro-batches": {"method": bz.FZOO(2)},
    "blocks": {"method": bz.SPZO(1, 2)},
    "planned": {"method": "auto"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_evaluation_of_a_step_takes_the_choice(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Move] = []
    monkeypatch.setattr(executor, "Move", lambda *told: made.append(Move(*told)) or made[-1])
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))).bfloat16()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).float().square().mean()

    x = torch.randn(6, 8).bfloat16()
    zo = bz.ZO(model, loss, moved="rounded", **SETTINGS[setting])
    zo.step(bz.MicroBatches([x, 2 * x]) if setting == "micro-batches" else x)
    assert made and {move.moved for move in made} == {"rounded"}


@pytest.mark.parametrize("moved", ["float32", "rounded"])
@pytest.mark.parametrize("case", ["linear", "transposed", "vector", "small"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_graphed_step_takes_the_choice(
    dtype: torch.dtype, case: str, moved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case != "small":
        monkeypatch.setattr(parameters, "SMALL", 16)
    model, eps = Cancels("linear" if case == "small" else case, 50, dtype), 3e-3 if dtype == torch.bfloat16 else 4e-4
    zo = bz.ZO(model, lambda m, _: square(m()), eps=eps, moved=moved, max_group=1)
    want = moved_by(
        model, lambda held: bz.perturb_(held, bz.Noise(step_seed(0, 0)), eps), dtype if moved == "rounded" else None
    )
    assert bz.GraphedStep(zo).step(torch.ones(1)).losses[0] == pytest.approx(want, rel=0.03)


def test_float32_weights_have_nothing_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy is made of one whose noise has a low rank."""
    monkeypatch.setattr(parameters, "SMALL", 16)
    monkeypatch.delattr(functions, "_by_copies")
    noise, model = bz.Noise(5, rank=2), Cancels("linear", 5, torch.float32)
    found = []
    for moved in MOVED:
        with bz.perturbed(model, noise, [3], [0.1], moved=moved):
            found.append(model())
        found.append(bz.ops.perturbed_linear(model.x, model.weight, None, noise, "weight", [3], [0.1], moved=moved))
    assert all(torch.equal(found[0], other) for other in found)
    half = model.weight.detach().bfloat16()
    with pytest.raises(ValueError, match="moved is 'rounded' for noise of rank 2"):
        bz.ops.perturbed_linear(model.x.bfloat16(), half, None, noise, "weight", [3], [0.1], moved="rounded")


def test_a_view_of_what_does_not_lie_densely_is_refused_where_it_would_be_rounded() -> None:
    model = Cancels("strided", 5, torch.bfloat16)
    for moved, context in (("rounded", nullcontext()), ("float32", pytest.raises(ValueError, match="not lie densely"))):
        with bz.perturbed(model, bz.Noise(5), moved=moved), context:
            assert model.weight[2:].shape == (ROWS - 2, WIDTH)


def test_products_in_float32_are_else_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", 16)
    model, scale = Cancels("vector", 5, torch.bfloat16), 1.5 * 2.0**-9
    weight, line, out = model.weight, model.x[0, 1], torch.empty(ROWS).bfloat16()
    with bz.perturbed(model, bz.Noise(5), [3], [scale], moved="rounded"):
        rounded = weight @ line
    with bz.perturbed(model, bz.Noise(5), [3], [scale], moved="float32"):
        found = weight @ line
        assert found.dtype == torch.bfloat16 and not torch.equal(found, rounded)
        assert torch.mv(weight, line, out=out) is out and torch.equal(out, found)
        assert weight.to("cpu", copy=True).dtype == torch.bfloat16
        with pytest.raises(RuntimeError) as plain:
            torch.zeros(ROWS, WIDTH).bfloat16() @ line.float()
        with pytest.raises(RuntimeError) as error:
            weight @ line.float()
        assert str(error.value) == str(plain.value)  # torch's own words, which change between its versions
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(weight @ line, rounded)
