"""Privacy: noise of the right shape and size, one unit's influence bounded to the bit, epsilon against its definition."""

from __future__ import annotations

import json
import math
import statistics
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import blockzo as bz
from blockzo.federated.privacy import settings as privacy
from blockzo.federated.privacy.discrete_gaussian import bernoulli, discrete_gaussian
from blockzo.federated.protocol.settings import RunSettings, run_tag
from tests.federated.private_problem import CENTRAL, LOCAL, private, private_run
from tests.federated.problem import settings

# noise


@pytest.mark.parametrize("variance", [Fraction(1, 9), Fraction(2), Fraction(9, 4)])
def test_the_noise_has_the_law_of_a_discrete_gaussian(variance: Fraction) -> None:
    count = 6000
    drawn = [discrete_gaussian(variance) for _ in range(count)]
    weights = {x: math.exp(-x * x / (2 * float(variance))) for x in range(-40, 41)}
    total = sum(weights.values())
    squares = 0.0
    cells = [x for x in weights if count * weights[x] / total >= 5]
    for x in cells:
        expected = count * weights[x] / total
        squares += (drawn.count(x) - expected) ** 2 / expected
    # chi squared: mean len - 1; eight standard deviations beyond it
    assert squares < len(cells) + 8 * math.sqrt(2 * len(cells))


def test_the_noise_has_the_size_that_was_asked_for() -> None:
    chosen = private(noise_multiplier=1.5)
    drawn = [discrete_gaussian(chosen.variance) / chosen.levels for _ in range(4000)]
    assert statistics.fmean(drawn) == pytest.approx(0, abs=7 * 1.5 / math.sqrt(4000))
    assert statistics.pstdev(drawn) == pytest.approx(1.5, rel=7 / math.sqrt(2 * 4000))


def test_bernoulli() -> None:
    assert not any(bernoulli(0, 3) for _ in range(50)) and all(bernoulli(3, 3) for _ in range(50))
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(Fraction(0))


def test_noise_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    import numpy

    def outputs() -> tuple[float, ...]:
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)
        return private(LOCAL).noisy([0.5] * 8)

    assert outputs() != outputs()


# one unit's influence

VALUES = st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=3, max_size=3)


@given(VALUES, st.floats(1e-3, 1e3))
def test_a_clipped_unit_is_within_the_bound(values: list[float], clip: float) -> None:
    chosen = private(clip=clip)
    found = chosen.clipped(values)
    assert sum(v * v for v in found) <= chosen.levels**2
    norm = math.sqrt(math.fsum(v * v for v in values))
    factor = min(1.0, clip / norm) if norm else 1.0
    for value, whole in zip(values, found, strict=True):
        assert whole * clip / chosen.levels == pytest.approx(value * factor, abs=2e-6 * clip)
        assert abs(whole) * clip / chosen.levels <= abs(value) * (1 + 1e-9)


@given(st.lists(VALUES, min_size=1, max_size=16), st.floats(1e-3, 1e3), st.integers(0, 15))
def test_neighbouring_batches_differ_by_one_unit(batch: list[list[float]], clip: float, place: int) -> None:
    """Without the noise: taking one example away moves the server's integers by `levels` at most, through float32 replies."""
    chosen = private(clip=clip, unit="example", batch=16)
    less = [values for number, values in enumerate(batch) if number != place % len(batch)]

    def integers(rows: list[list[float]]) -> list[int]:
        sent = [float(torch.tensor(v, dtype=torch.float32)) for v in chosen.mean_of(rows, 3)]
        exact = [sum(column) for column in zip(*(chosen.clipped(row) for row in rows), strict=True)] or [0, 0, 0]
        assert chosen.integers(sent) == exact
        return exact

    whole, rest = integers(batch), integers(less)
    assert sum((a - b) ** 2 for a, b in zip(whole, rest, strict=True)) <= chosen.levels**2


def test_the_server_does_not_trust_a_client_to_clip() -> None:
    chosen = private()
    assert sum(v * v for v in chosen.integers([1e6, -1e6, 5.0])) <= chosen.levels**2
    with pytest.raises(ValueError, match="not finite"):
        chosen.integers([math.nan])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_unit_that_is_not_finite_counts_as_nothing(wrong: float) -> None:
    assert private().clipped([1.0, wrong, 2.0]) == [0, 0, 0]
    assert private(unit="example", batch=4, clip=4.0).mean_of([[1.0, wrong], [0.5, -0.25]], 2) == (0.125, -0.0625)


def test_the_mean_is_over_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "discrete_gaussian", lambda variance: 0)
    chosen = private(clients=4)
    assert chosen.noisy_mean([(1.0, 2.0)], 2) == pytest.approx([0.25, 0.5], abs=1e-5)
    assert chosen.noisy_mean([(1.0, 2.0)] * 3, 2) == pytest.approx([0.75, 1.5], abs=1e-5)
    assert chosen.noisy_mean([], 2) == [0.0, 0.0]


# settings


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "none"},
        {"unit": "row"},
        {"clip": 0.0},
        {"clip": math.inf},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": True},
        {"delta": 0.9},
        {"clients": 0},
        {"sampling_rate": 1.5},
        {"sampling_rate": 0.5, "mode": "local"},
        {"sampling_rate": 0.5, "unit": "example"},
        {"batch": 2},
        {"batch": 0, "unit": "example"},
    ],
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="privacy"):
        private(**change)


@pytest.mark.parametrize(
    ("values", "given", "reason"),
    [
        (CENTRAL, {"weighting": "examples"}, "weighting"),
        (LOCAL, {"weighting": "examples"}, "weighting"),
        (CENTRAL, {"aggregate": "median"}, "aggregate"),
        (CENTRAL, {"aggregate": "trimmed-mean"}, "aggregate"),
        (CENTRAL, {"aggregate": "sign"}, "aggregate"),
        (CENTRAL, {"own_directions": True}, "own_directions"),
        ({**CENTRAL, "unit": "example"}, {"local_steps": 2}, "local step"),
        ({**CENTRAL, "unit": "example"}, {"method": bz.FZOO(2)}, "FZOO"),
        ({**CENTRAL, "salt": 1}, {}, "unknown .*salt"),
        ({"mode": "local"}, {}, "privacy: .*clip"),
    ],
)
def test_runs_for_which_the_accounting_does_not_hold(values: Any, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        settings(**{"privacy": values, "weighting": "equal", **given})


def test_privacy_is_part_of_the_run() -> None:
    run = private_run(CENTRAL)
    again = RunSettings.from_dict(json.loads(json.dumps(run.as_dict())))
    assert again == run and again.private == private()
    tags = {
        run_tag(r, "b", {"w": 0}) for r in (run, settings(weighting="equal"), private_run({**CENTRAL, "clip": 2.0}))
    }
    assert len(tags) == 3
    for aggregate in ("median", "trimmed-mean", "sign"):
        assert private_run(LOCAL, aggregate=aggregate).private is not None
