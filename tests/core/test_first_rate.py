"""The first learning rate: by hand on a quadratic, for methods that scale their scalars, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

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


class Line(nn.Module):
    """w x of every row, whose weights bfloat16 cannot move by 1e-3: its numbers near 1 are 2^-7 apart."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4, bias=False, dtype=dtype)
        nn.init.constant_(self.linear.weight, 1.0)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.linear(rows).float()
        return found


def each(model: nn.Module, rows: Tensor) -> Tensor:
    found: Tensor = model(rows).square().mean(1)
    return found


def whole(model: nn.Module, rows: Tensor) -> Tensor:
    return each(model, rows).mean()


def some_rows(count: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(8, 8, generator=generator).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("limit", [1, 8])
def test_of_losses_an_example_the_mean_counts(limit: int) -> None:
    given = some_rows()
    wanted = suggest_lr(bz.ZO(Line(), whole, bz.SPSA(2), eps=1e-2, per_example=True, max_group=limit), given)
    assert suggest_lr(bz.ZO(Line(), each, bz.SPSA(2), eps=1e-2, per_example=True, max_group=limit), given) == wanted
    assert wanted == suggest_lr(bz.ZO(Line(), whole, bz.SPSA(2), eps=1e-2, max_group=limit), given)


def labelled(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """One number an example; of one without a label, nothing."""
    found = each(model, batch["rows"])
    return torch.where((batch["labels"] == -100).all(1), torch.nan, found)


def test_of_losses_an_example_the_mean_is_by_their_weights() -> None:
    given = [{"rows": rows, "labels": torch.arange(24).view(8, 3) % 7} for rows in some_rows()]
    for batch in given:
        batch["labels"][0] = -100
        batch["labels"][3, :2] = -100
    shares = torch.tensor([0.0, 3, 3, 1, 3, 3, 3, 3]) / 19

    def weighted(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (shares * each(model, batch["rows"])).sum()

    def weight(batch: dict[str, Tensor]) -> float:
        return float((batch["labels"] != -100).sum())

    def suggested(loss: Any, **given_too: Any) -> float:
        return suggest_lr(bz.ZO(Line(), loss, bz.SPSA(2), eps=1e-2, rows_of=weight, **given_too), given)

    assert suggested(labelled, per_example=True) == pytest.approx(suggested(weighted), rel=0.02)


def test_a_method_that_divides_is_tried_as_the_run_takes_it() -> None:
    """Of 8 examples along directions of their own a step of FZOO has 8 times the scalars, an eighth as large each."""
    given = some_rows()
    shared, own = (suggest_lr(bz.ZO(Line(), whole, bz.FZOO(8), per_example=own), given) for own in (False, True))
    assert own / shared == pytest.approx(math.sqrt(8), rel=0.4)


def test_micro_batches_are_their_whole() -> None:
    given = some_rows()
    wanted = suggest_lr(bz.ZO(Line(), whole, bz.MeZO(), eps=1e-2), given)
    for parts in ([[one[:2], one[2:]] for one in given], [bz.MicroBatches([one[:2], one[2:]]) for one in given]):
        assert suggest_lr(bz.ZO(Line(), whole, bz.MeZO(), eps=1e-2), parts) == pytest.approx(wanted, rel=0.02)
    # of the run's weights
    last = suggest_lr(bz.ZO(Line(), whole, bz.MeZO(), eps=1e-2), [one[2:] for one in given])
    weighed = bz.ZO(Line(), whole, bz.MeZO(), eps=1e-2, rows_of=lambda rows: float(len(rows) > 2))
    assert suggest_lr(weighed, [[one[:2], one[2:]] for one in given]) == last != wanted


def test_a_batch_costs_five_forwards() -> None:
    counts = []
    for number in (4, 8):
        calls = []

        def counted(model: nn.Module, rows: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return whole(model, rows)

        suggest_lr(bz.ZO(Line(), counted, bz.MeZO(), max_group=1), some_rows(number))
        counts.append(len(calls))
    assert counts[1] - counts[0] == 4 * 5


def test_weights_are_moved_as_in_the_run() -> None:
    given = some_rows(dtype=torch.bfloat16)
    assert suggest_lr(bz.ZO(Line(torch.bfloat16), whole, bz.MeZO(), eps=1e-3, moved="float32"), given) > 0
    with pytest.raises(ValueError, match="the same along every direction"):
        suggest_lr(bz.ZO(Line(torch.bfloat16), whole, bz.MeZO(), eps=1e-3, moved="rounded"), given)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="plans a rate for every block"):
        suggest_lr(bz.ZO(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), method="auto"), batches())
    with pytest.raises(ValueError, match="no batches"):
        suggest_lr(zo(bz.MeZO()), [])


def test_a_loss_that_nothing_moves_is_refused() -> None:
    def masked(model: nn.Module, rows: Tensor) -> Tensor:
        return whole(model, rows) * rows[0, 0]

    still, moving = torch.zeros(8, 8), some_rows(3)
    with pytest.raises(ValueError, match="the same along every direction"):
        suggest_lr(bz.ZO(Line(), masked, bz.MeZO()), [still])
    # the batch that a method is tried on, where others move the loss
    with pytest.raises(ValueError, match="the same along every direction"):
        suggest_lr(bz.ZO(Line(), masked, bz.FZOO(4)), [still, *moving])
    assert suggest_lr(bz.ZO(Line(), masked, bz.MeZO()), [still, *moving]) > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("as_number", [False, True])
def test_a_loss_that_is_not_finite_is_refused(value: float, as_number: bool) -> None:
    def broken(model: nn.Module, rows: Tensor) -> object:
        found = whole(model, rows) + float(rows[0, 0])
        return float(found) if as_number else found

    given = some_rows()
    given[2][0, 0] = value
    with pytest.raises(ValueError, match=f"the loss is {value} at unmoved weights; expected a finite number"):
        suggest_lr(bz.ZO(Line(), broken, bz.MeZO(), max_group=1), given)  # type: ignore[arg-type]
