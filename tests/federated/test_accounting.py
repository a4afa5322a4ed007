"""Epsilon against its definition, summed over the integers, and against what others computed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from blockzo.federated.privacy import accounting, settings
from tests.federated.private_problem import LOCAL, private

Law = NDArray[np.float64]
GRID = 8
"""Steps in `clip` of the coarse grids below, on which every integer can be visited."""


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "GRID_BITS", 3)
    assert private().levels == GRID


def law(variance: float, reach: int = 400) -> Law:
    """Of a discrete Gaussian, on -reach to reach."""
    found = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    return found / found.sum()


def delta_of(first: Law, second: Law, epsilon: float) -> float:
    """Hockey-stick divergence: the least delta for which two outputs are (epsilon, delta)-close, one way."""
    return float(np.maximum(0.0, first - math.exp(epsilon) * second).sum())


def holds(without: Law, moved: Law, epsilon: float, delta: float) -> bool:
    return max(delta_of(without, moved, epsilon), delta_of(moved, without, epsilon)) <= delta


@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.usefixtures("coarse")
def test_epsilon_holds_for_the_exact_distributions(rate: float, sigma: float, delta: float) -> None:
    """One round, one scalar: the true divergence of neighbours, summed over the integers."""
    noise = law((sigma * GRID) ** 2)
    having = (1 - rate) * noise + rate * np.roll(noise, GRID)
    epsilon = private(noise_multiplier=sigma, delta=delta, sampling_rate=rate).epsilon(1)
    assert holds(noise, having, epsilon, delta)
    # and it is not much too large; a grid step of 1/8 costs what `continuous` takes away
    assert not holds(noise, having, epsilon * 0.9 if sigma * GRID > 5 else epsilon * 0.5, delta)


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.usefixtures("coarse")
def test_epsilon_holds_over_several_rounds_and_scalars(rate: float) -> None:
    """Two rounds of two scalars, in which the unit lies askew to the grid: (5, 6), then (-7, 3), of norm at most 8."""
    private_ = private(noise_multiplier=1.0, delta=1e-4, sampling_rate=rate)
    axis = law(GRID**2, 44)
    reached = []
    for move in ((5, 6), (-7, 3)):
        noise = np.multiply.outer(axis, axis).ravel()
        moved = np.multiply.outer(np.roll(axis, move[0]), np.roll(axis, move[1])).ravel()
        having = (1 - rate) * noise + rate * moved
        # the joint law of rounds needs their privacy losses alone: on a grid so fine that rounding does not matter
        reached.append((noise, having))
    losses = []
    for noise, having in reached:
        loss = np.round(np.log(having / noise) / 1e-3).astype(int)
        low = int(loss.min())
        losses.append((low, np.bincount(loss - low, weights=having), np.bincount(loss - low, weights=noise)))
    low = sum(at for at, _, _ in losses)
    joint = np.convolve(losses[0][1], losses[1][1])
    epsilon = private_.epsilon(2)
    at = (np.arange(len(joint)) + low) * 1e-3

    def delta(bound: float) -> float:
        above = at > bound
        return float((joint[above] * -np.expm1(bound - at[above])).sum())

    assert delta(epsilon + 2e-3) <= 1e-4 < delta(epsilon * 0.85)


@pytest.mark.parametrize("shares", [2, 5])
@pytest.mark.usefixtures("coarse")
def test_epsilon_holds_for_a_sum_of_shares(shares: int) -> None:
    for sigma in (math.sqrt(8.01 * shares) / GRID, 2.0):
        chosen = private(noise_multiplier=sigma, delta=1e-4, survivors=shares)
        noise = one = law(float(chosen.variance) / shares, 60)
        for _ in range(shares - 1):
            noise = np.convolve(noise, one)
        room = np.pad(noise, GRID)
        moved = np.roll(room, GRID)
        epsilon = chosen.epsilon(1)
        assert holds(room, moved, epsilon, 1e-4) and not holds(room, moved, epsilon * 0.6, 1e-4)


def test_the_noise_on_the_grid_is_a_rounded_continuous_one() -> None:
    """The lemma itself: a continuous Gaussian moved by an integer, rounded at random, by numerical integration."""
    variance, rounding, moved = 20.0, float(accounting._ROUNDING), 3
    step = 1 / 64
    at = np.arange(-60, 60, step)
    density = np.exp(-((at - moved) ** 2) / (2 * (variance - rounding)))
    density /= density.sum()
    points = np.arange(-50, 51)
    kernel = np.exp(-((points[:, None] - at[None, :]) ** 2) / (2 * rounding))
    rounded = (kernel / kernel.sum(0)) @ density
    wanted = np.exp(-((points - moved) ** 2) / (2 * variance))
    wanted /= wanted.sum()
    near = wanted > 1e-12
    assert np.abs(np.log(rounded[near] / wanted[near])).max() < 1e-9


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_moments_of_a_sampled_round_are_the_gaussians(rate: float) -> None:
    """Both directions, whole orders, from their definition over the integers, against dp-accounting's of the continuous noise."""
    levels, sigma = 3, 0.8
    spread = range(-60, 61)
    noise = {x: math.exp(-x * x / (2 * (sigma * levels) ** 2)) for x in spread}
    total = math.fsum(noise.values())
    orders, divergences = accounting.one_round(sigma, rate)
    for order, divergence in zip(orders, divergences, strict=True):
        if order <= 6:
            pairs = [
                (noise[x] / total, math.exp((2 * levels * x - levels**2) / (2 * (sigma * levels) ** 2))) for x in spread
            ]
            mixed = [(p, 1 - rate + rate * ratio) for p, ratio in pairs]
            one = math.log(math.fsum(p * m**order for p, m in mixed)) / (order - 1)
            other = math.log(math.fsum(p * m ** (1 - order) for p, m in mixed)) / (order - 1)
            assert one == pytest.approx(divergence, rel=1e-9) and other <= one * (1 + 1e-12)


# known cases


@pytest.mark.parametrize(
    ("noise", "rate", "rounds", "renyi", "epsilon"),
    [
        # Abadi et al.'s MNIST with the noise of TensorFlow Privacy's tutorial (60 epochs of 60,000, batches of 256): 2.60 by
        # Renyi divergences, 3.01 by their older conversion
        (1.1, 256 / 60000, 14062, 2.597, 2.3821),
        (0.6, 0.01, 1000, 9.1026, 7.4344),
    ],
)
def test_epsilon_of_known_cases(noise: float, rate: float, rounds: int, renyi: float, epsilon: float) -> None:
    chosen = private(noise_multiplier=noise, sampling_rate=rate)
    assert accounting.by_renyi(noise, rate, rounds, 1e-5) == pytest.approx(renyi, abs=2e-3)
    assert chosen.epsilon(rounds) == pytest.approx(epsilon, abs=2e-3)


def test_epsilon_is_not_below_what_a_finer_grid_shows() -> None:
    from dp_accounting.pld import privacy_loss_distribution

    for noise, rate, rounds in ((1.1, 256 / 60000, 14062), (1.0, 0.1, 30)):
        fine = privacy_loss_distribution.from_gaussian_mechanism(noise, sampling_prob=rate).self_compose(rounds)
        least = fine.get_epsilon_for_delta(1e-5)
        assert least < private(noise_multiplier=noise, sampling_rate=rate).epsilon(rounds) < least * 1.001


@pytest.mark.parametrize(("noise", "rate", "rounds"), [(0.6, 0.01, 1000), (0.3, 0.01, 100), (2.0, 0.1, 100_000)])
def test_the_allowance_for_the_fourier_transform(noise: float, rate: float, rounds: int) -> None:
    """The same composition in 80-bit floats has a delta within a tenth of what is taken off."""
    from dp_accounting.pld import common
    from scipy import fft

    one = accounting._losses(noise, rate)
    composed = one.self_compose(rounds)._pmf_remove
    given = np.asarray(one._pmf_remove._probs, dtype=np.longdouble)
    low, high = common.compute_self_convolve_bounds(given, rounds, 1e-15)
    size = fft.next_fast_len(max(high - low + 1, len(given)))
    exact = np.roll(np.real(fft.ifft(fft.fft(given, size) ** rounds)), -low)[: high - low + 1]
    at = (np.arange(len(exact)) + composed._lower_loss) * composed._discretization
    for epsilon in (0.0, 1.0, 5.0):
        above = at > epsilon
        wrong = ((exact - composed._probs)[above] * -np.expm1(epsilon - at[above])).sum()
        assert abs(float(wrong)) <= rounds * accounting._FFT_ERROR / 10


@pytest.mark.parametrize("values", [{}, {"unit": "example", "batch": 16}, {"survivors": 6}, LOCAL])
def test_without_sampling_epsilon_is_the_gaussians(values: dict[str, object]) -> None:
    chosen = private({**LOCAL, "mode": "central", "delta": 1e-5, **values, "noise_multiplier": 4.0})

    def delta(epsilon: float, rounds: int) -> float:
        """Balle and Wang 2018, theorem 8, for `rounds` rounds of noise 4."""
        mu = math.sqrt(rounds) / 4

        def below(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        return below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)

    for rounds in (1, 50):
        epsilon = chosen.epsilon(rounds)
        assert delta(epsilon, rounds) <= chosen.delta < delta(epsilon * (1 - 1e-6), rounds)
        assert epsilon < accounting.by_renyi(4.0, 1.0, rounds, chosen.delta)
    assert chosen.epsilon(0) == 0.0 and chosen.epsilon(51) > chosen.epsilon(50)
    with pytest.raises(ValueError, match="rounds"):
        chosen.epsilon(-1)


def test_sampling_counts() -> None:
    assert private(noise_multiplier=4.0, sampling_rate=0.1).epsilon(50) < private(noise_multiplier=4.0).epsilon(50) / 2


@pytest.mark.parametrize(
    ("change", "rounds"),
    [
        ({"noise_multiplier": 0.2}, 3),
        ({"delta": 1e-14}, 30),
        ({"delta": 1e-300}, 3),
        ({}, 200_000),
    ],
)
def test_renyi_alone_where_a_loss_distribution_would_be_slow_or_inexact(change: dict[str, float], rounds: int) -> None:
    chosen = private(**{"noise_multiplier": 1.0, "sampling_rate": 0.01, **change})
    assert chosen.epsilon(rounds) == accounting.by_renyi(chosen.noise_multiplier, 0.01, rounds, chosen.delta)


def test_renyi_alone_on_a_coarse_grid() -> None:
    """Below twice the rounding's variance the lemma says nothing."""
    values = {"unit": "example", "batch": 1 << 14, "noise_multiplier": 2.0 / 256}
    chosen = private(**values)
    assert chosen.levels == 256 and accounting.continuous(chosen.noise_multiplier, chosen.variance, 1) is None
    assert chosen.epsilon(2) == accounting.by_renyi(chosen.noise_multiplier, 1.0, 2, chosen.delta)


def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    for rate in (1.0, 0.05):
        grown = [private(noise_multiplier=0.8, sampling_rate=rate).epsilon(rounds) for rounds in (1, 2, 5, 40, 41, 400)]
        assert all(a < b for a, b in itertools.pairwise(grown))
        fallen = [private(noise_multiplier=z, sampling_rate=rate).epsilon(20) for z in (0.25, 0.5, 0.9, 1.0, 3.0)]
        assert all(a > b for a, b in itertools.pairwise(fallen))


def test_without_dp_accounting_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"blockzo\[privacy\]"):
        private().epsilon(3)
