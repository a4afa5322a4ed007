"""A loss that is not a function of weights and batch is found by evaluating it again, and its cause is named."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import blockzo as bz
from blockzo.optim.repeatable import NotRepeatable, check_repeatable, tolerance_of
from blockzo.perturb.losses import evaluation_mode
from tests.core import zoo

OWN = random.Random(3)
COUNTER = count()


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x).sum() * (1 + 1e-3 * self.calls)


def _loss(noise: Callable[[Tensor], Tensor | float]) -> Callable[[], Tensor]:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, generator=torch.Generator().manual_seed(1))
    return lambda: (noise(x) * (x @ weight).unsqueeze(1)).square().mean()


BAD = {
    "functional dropout": (lambda x: functional.dropout(torch.ones_like(x), 0.1, training=True), "torch"),
    "torch.rand": (lambda x: 1 + 1e-3 * torch.rand(()), "torch"),
    "random.random": (lambda x: 1 + random.random(), "Python's module random"),
    "numpy": (lambda x: 1 + float(np.random.rand()), "numpy"),
    "own generator": (lambda x: 1 + OWN.random(), "generator of its own"),
    "counter": (lambda x: 1 + 1e-5 * next(COUNTER), "keeps state"),
    "every other call": (lambda x: 1 + next(COUNTER) % 2, "keeps state"),
}


@pytest.mark.parametrize("kind", BAD)
def test_it_is_refused_and_the_cause_is_named(kind: str) -> None:
    noise, cause = BAD[kind]
    with pytest.raises(NotRepeatable, match=cause):
        check_repeatable(_loss(noise))


def test_a_buffer_that_counts_is_named() -> None:
    model = Counted()
    with pytest.raises(NotRepeatable, match="'calls'"), evaluation_mode(model):
        check_repeatable(lambda: model(torch.ones(2, 8)), model)


def test_a_batch_that_is_written_is_named() -> None:
    def loss(m: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return m(batch["x"].add_(1.0)).pow(2).mean()

    with pytest.raises(NotRepeatable, match="it writes the batch in place, where the next evaluation reads it"):
        bz.ZO(nn.Linear(8, 1), loss).step({"x": torch.ones(2, 8)})


def test_rare_use_of_what_is_drawn_is_looked_for_longer() -> None:
    def rare() -> Iterator[float]:
        for value in (1.0, 1.0, 1.0, 2.0):
            torch.rand(())
            yield value

    values = rare()
    with pytest.raises(NotRepeatable, match="draws random numbers"):
        check_repeatable(lambda: next(values))


def test_harmless_ones_pass() -> None:
    assert check_repeatable(_loss(lambda x: 1.0)) == 2
    # drawn and not used, as some models do with layer dropout
    drawn = _loss(lambda x: 1.0 if torch.rand(()) < 2 else 0.0)
    assert check_repeatable(drawn) == 6
    # the last bits of kernels that sum in any order
    values = iter([0.7, 0.7 * (1 + 2.0**-23)])
    assert check_repeatable(lambda: next(values)) == 2
    # what is not finite the step refuses
    assert check_repeatable(lambda: float("nan")) == 2
    assert tolerance_of(None) == tolerance_of(nn.Linear(2, 2)) < tolerance_of(nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "opt"])
def test_models_in_evaluation_mode_pass(name: str) -> None:
    model, batch = zoo.make(name), zoo.batch()
    model.train()
    with evaluation_mode(model):
        assert check_repeatable(lambda: model(**batch).loss, model) == 2


def test_a_batch_that_is_used_up_is_told_in_words() -> None:
    batch, rows = {"x": torch.ones(2)}, iter([torch.ones(2)])
    for loss, error in ((lambda: batch.pop("x").sum(), "KeyError: 'x'"), (lambda: next(rows).sum(), "StopIteration: ")):
        with pytest.raises(
            NotRepeatable, match=f"evaluated again on the same batch .{error}.*pop, del, next, an iterator"
        ):
            check_repeatable(loss)
