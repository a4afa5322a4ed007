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
        assert chosen._sums(sent) == exact
        return exact

    whole, rest = integers(batch), integers(less)
    assert sum((a - b) ** 2 for a, b in zip(whole, rest, strict=True)) <= chosen.levels**2


def test_the_server_does_not_trust_a_client_to_clip() -> None:
    chosen = private()
    assert sum(v * v for v in chosen._sums([1e6, -1e6, 5.0])) <= chosen.levels**2
    with pytest.raises(ValueError, match="not finite"):
        chosen._sums([math.nan])


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


# epsilon


def delta_of(first: dict[int, float], second: dict[int, float], epsilon: float) -> float:
    """Hockey-stick divergence: the least delta for which two outputs are (epsilon, delta)-close, one way."""
    return math.fsum(max(0.0, p - math.exp(epsilon) * second.get(x, 0.0)) for x, p in first.items())


@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_epsilon_holds_for_the_exact_distributions(rate: float, sigma: float) -> None:
    """One round, one scalar, eight grid steps of influence: the true divergence of neighbours, summed over the integers."""
    levels = 8
    spread = range(-400, 401)
    weights = {x: math.exp(-x * x / (2 * (sigma * levels) ** 2)) for x in spread}
    total = math.fsum(weights.values())
    without = {x: w / total for x, w in weights.items()}
    having = {x: (1 - rate) * without.get(x, 0) + rate * without.get(x - levels, 0) for x in spread}
    for delta in (1e-3, 1e-6):
        epsilon = private(noise_multiplier=sigma, delta=delta, sampling_rate=rate).epsilon(1)
        assert max(delta_of(without, having, epsilon), delta_of(having, without, epsilon)) <= delta * (1 + 1e-6)
        # and it is not much too large
        assert max(delta_of(without, having, epsilon / 2), delta_of(having, without, epsilon / 2)) > delta


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_moments_of_a_sampled_round_are_the_gaussians(rate: float) -> None:
    """Both directions, whole orders, from their definition over the integers, against dp-accounting's of the continuous noise."""
    levels, sigma = 3, 0.8
    spread = range(-60, 61)
    noise = {x: math.exp(-x * x / (2 * (sigma * levels) ** 2)) for x in spread}
    total = math.fsum(noise.values())
    orders, divergences = privacy._one_round(sigma, rate)
    for order, divergence in zip(orders, divergences, strict=True):
        if order <= 6:
            pairs = [
                (noise[x] / total, math.exp((2 * levels * x - levels**2) / (2 * (sigma * levels) ** 2))) for x in spread
            ]
            mixed = [(p, 1 - rate + rate * ratio) for p, ratio in pairs]
            one = math.log(math.fsum(p * m**order for p, m in mixed)) / (order - 1)
            other = math.log(math.fsum(p * m ** (1 - order) for p, m in mixed)) / (order - 1)
            assert one == pytest.approx(divergence, rel=1e-9) and other <= one * (1 + 1e-12)


def test_epsilon_of_known_cases() -> None:
    # Abadi et al.'s MNIST with the noise of TensorFlow Privacy's tutorial (60 epochs of 60,000, batches of 256): 2.60 by RDP with
    # the conversion of Canonne et al. 2020, 3.01 by the older one
    known = private(noise_multiplier=1.1, sampling_rate=256 / 60000)
    assert known.epsilon(14062) == pytest.approx(2.597, abs=2e-3)
    # unsampled, from the formulas: rounds * alpha / (2 z^2), converted by Canonne et al., proposition 12
    plain = private(noise_multiplier=4.0)

    def at(alpha: float) -> float:
        spent = 50 * alpha / (2 * 16.0)
        return spent + math.log1p(-1 / alpha) - math.log(1e-5 * alpha) / (alpha - 1)

    least = min(at(1 + k / 100) for k in range(1, 5000))
    assert plain.epsilon(50) == pytest.approx(least, rel=2e-3)
    assert plain.epsilon(50) >= least - 1e-9
    assert plain.epsilon(0) == 0.0 and plain.epsilon(51) > plain.epsilon(50)
    assert private(noise_multiplier=4.0, sampling_rate=0.1).epsilon(50) < plain.epsilon(50) / 2
    with pytest.raises(ValueError, match="rounds"):
        plain.epsilon(-1)


def test_without_dp_accounting_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"blockzo\[privacy\]"):
        private().epsilon(3)


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
