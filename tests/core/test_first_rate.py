"""The first learning rate: by hand on a quadratic, for methods that scale their scalars, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.optim.first_rate import NOISE_ROWS, PROBES, suggest_lr
from blockzo.optim.step import step_seed


class Bowl(nn.Module):
    """0.5 sum h w^2: the curvature along every Rademacher direction is sum h."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-0.1, 0.1, 64))
        self.register_buffer("h", torch.linspace(0.0, 200.0, 64))

    def forward(self, batch: Tensor) -> Tensor:
        return (0.5 * self.h.double() * self.w.double() ** 2).sum() + 0.0 * batch.sum()


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = model(batch)
    return found


def batches(count: int = 4) -> list[Tensor]:
    return [torch.full((2,), float(k)) for k in range(count)]


def zo(method: object = None, eps: float = 1e-2, **more: object) -> bz.ZO:
    return bz.ZO(Bowl(), loss, method, eps=eps, seed=5, max_group=1, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 4])
def test_the_rate_is_that_of_the_formula(count: int) -> None:
    model = Bowl()
    slopes = []
    for number in range(4):
        noise = bz.Noise(step_seed(step_seed(5, PROBES + number), 0))
        for direction in range(2):
            slopes.append(float((model.h * model.w.detach() * noise.sample("w", (64,), direction)).sum()))
    energy = sum(s * s for s in slopes) / len(slopes)
    curvature = max(float(model.h.sum()), energy)
    rows = 32
    wanted = rows / (rows + NOISE_ROWS) * count / (curvature * (1 + (count - 1) / 16))
    found = suggest_lr(zo(bz.SPSA(count)), batches(), rows)
    # two digits, and the rounding of losses in the curvature
    assert found == pytest.approx(wanted, rel=0.06)


def test_no_weight_moves_and_the_same_question_has_the_same_answer() -> None:
    own = zo(bz.MeZO())
    before = own.model.w.detach().clone()
    assert suggest_lr(own, batches()) == suggest_lr(own, batches())
    assert torch.equal(own.model.w, before) and own.step_number == 0


def test_a_method_that_divides_by_the_losses_deviation_moves_as_far() -> None:
    """An update at FZOO's rate is about as long as one at the rate of plain one-sided differences."""
    lengths = {}
    for method in (bz.OneSided(8), bz.FZOO(8)):
        # so small that curvature does not lean on the differences
        rate = suggest_lr(zo(method, eps=1e-3), batches())
        found = [own_scalars(zo(method, eps=1e-3), step) for step in range(40)]
        lengths[type(method).__name__] = rate * math.sqrt(sum(found) / len(found))
    assert lengths["FZOO"] == pytest.approx(lengths["OneSided"], rel=0.5)


def own_scalars(optimiser: bz.ZO, step: int) -> float:
    optimiser.step_number = step
    return sum(s * s for s in optimiser.estimate(batches()[0]).scalars[0].values())


def test_training_at_the_rate_lowers_the_loss() -> None:
    for method in (bz.MeZO(), bz.SPSA(4), bz.OneSided(4), bz.FZOO(4)):
        model = Bowl()
        rate = suggest_lr(bz.ZO(model, loss, method, eps=1e-2), batches(), rows=300)
        trained = bz.ZO(model, loss, method, eps=1e-2, lr=rate)
        first = float(loss(model, batches()[0]).detach())
        for _ in range(60):
            trained.step(batches()[0])
        assert float(loss(model, batches()[0]).detach()) < 0.8 * first, method


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="plans a rate for every block"):
        suggest_lr(bz.ZO(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), method="auto"), batches())
    with pytest.raises(ValueError, match="no batches"):
        suggest_lr(zo(bz.MeZO()), [])
    flat = bz.ZO(nn.Linear(4, 4), lambda model, batch: model(batch).sum() * 0.0 + 1.0, bz.MeZO())
    with pytest.raises(ValueError, match="the same along every direction"):
        suggest_lr(flat, [torch.ones(4)])
