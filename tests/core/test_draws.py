"""Random numbers that seldom count: found by the least and the most that could be drawn. Seeds and unused draws pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from blockzo.optim.draws import Draws
from blockzo.optim.repeatable import NotRepeatable, check_repeatable

X = torch.linspace(0.1, 1.0, 12).view(3, 4)
OWN = torch.Generator().manual_seed(3)

RARE: dict[str, Callable[[], Tensor]] = {
    "a layer that is left out": lambda: X if torch.rand(()) > 1e-4 else 2 * X,
    "of its own generator": lambda: X if torch.rand((), generator=OWN) > 1e-4 else 2 * X,
    "large ones": lambda: X if torch.rand(()) < 1 - 1e-4 else 2 * X,
    "in place": lambda: X + (torch.empty(3, 4).uniform_(-1, 1) > 0.99999),
    "normal": lambda: X + (torch.randn(2, dtype=torch.float64) - 6).relu().sum(),
    "like": lambda: X + (torch.randn_like(X) + 6).clamp(max=0),
    "whole": lambda: X[:, torch.randint(10_000, (1,)).clamp(max=0)] + (torch.randint(0, 10**6, ()) == 0),
    "bernoulli": lambda: X * torch.bernoulli(torch.full((3, 1), 1 - 1e-5)),
    "bernoulli_": lambda: X + torch.empty(3, 4).bernoulli_(1e-5),
}


@pytest.mark.parametrize("kind", RARE)
def test_what_is_drawn_and_seldom_counts_is_refused(kind: str) -> None:
    torch.manual_seed(1)
    with pytest.raises(NotRepeatable, match="it draws random numbers, other ones in every evaluation.*set a seed"):
        check_repeatable(lambda: float(RARE[kind]().square().sum()))


def seeded() -> Tensor:
    own = torch.Generator().manual_seed(5)
    return X + torch.rand(X.shape, generator=own) + functional.dropout(X, 0.0, True)


def seeded_dropout() -> Tensor:
    torch.manual_seed(5)
    return functional.dropout(X, 0.5, True)


def unused() -> Tensor:
    return X if torch.rand(()) < 2 else X + torch.randn(3, 4)


def waits() -> Tensor:
    """Draws until a number fits."""
    while not 0.2 < float(torch.rand(())) < 0.9:
        pass
    return X


@pytest.mark.parametrize("loss", [seeded, seeded_dropout, unused, waits], ids=lambda f: f.__name__)
def test_seeds_and_what_does_not_count_pass(loss: Callable[[], Tensor]) -> None:
    check_repeatable(lambda: float(loss().square().sum()))


def test_the_least_and_the_most() -> None:
    with Draws(most=False):
        assert float(torch.rand(3).max()) == 0.0 and int(torch.randint(3, 7, (4,)).max()) == 3
        assert torch.equal(functional.dropout(X, 0.5, True), X)
    with Draws(most=True) as mode:
        assert float(torch.rand(3).min()) > 0.999 and int(torch.randint(7, (4,)).min()) == 6
        assert float(torch.empty(2).uniform_(2, 3).min()) > 2.99
        assert not functional.dropout(X, 0.5, True).any() and torch.equal(functional.dropout(X, 0.5, False), X)
    # dropout that is off draws nothing
    assert len(mode.drawn) == 4
