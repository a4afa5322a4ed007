"""Noise in shares: its distribution, what it costs, what one unit changes, and that no client is in two sums of a round."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import optimize, stats

from blockzo.federated.privacy import accounting, noise_shares
from blockzo.federated.privacy.noise_shares import mean_of_sum, noisy_integers
from blockzo.federated.privacy.settings import PrivacySettings
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.federated.secagg.fixed_point import WORD, from_words, to_words
from blockzo.federated.secagg.values import decoded, encoded
from blockzo.federated.sums import SumError
from tests.federated.private_problem import CENTRAL, private, private_run
from tests.federated.problem import Federation, settings, spoil
from tests.federated.secure_problem import code_of, coefficients, losing

SHARED: dict[str, Any] = {**CENTRAL, "survivors": 3}
COARSE: dict[str, Any] = {**CENTRAL, "unit": "example", "batch": 1 << 14, "noise_multiplier": 0.02, "survivors": 4}
"""A grid of 256 steps: noise of 5 steps in all, that can be looked at integer by integer."""


def exact(variance: float, most: int = 60) -> Any:
    """Probabilities of the discrete Gaussian over -most .. most."""
    found = np.exp(-(np.arange(-most, most + 1) ** 2) / (2 * variance))
    return found / found.sum()


def convolved(variance: float, times: int) -> Any:
    one = found = exact(variance)
    for _ in range(times - 1):
        found = np.convolve(found, one)
    return found


def cost(private_: PrivacySettings, *scalars: int) -> float:
    """Noise multiplier of a Gaussian that costs as much."""
    return accounting.of_shares(private_.noise_multiplier, private_.share_variance, *scalars)


# the noise


def test_a_sum_of_shares_has_the_distribution_that_the_bound_is_of() -> None:
    shares = private(COARSE)
    assert shares.levels == 256 and shares.share_variance == shares.variance / 4
    zeros = (0.0,)
    found = Counter(sum(noisy_integers(shares, zeros)[0] for _ in range(4)) for _ in range(20_000))
    wanted = convolved(float(shares.share_variance), 4)
    middle = len(wanted) // 2
    edges = range(-12, 13)
    seen = [found[x] for x in edges]
    expected = [20_000 * wanted[middle + x] for x in edges]
    seen.append(20_000 - sum(seen))
    expected.append(20_000 - sum(expected))
    assert stats.chisquare(seen, expected).pvalue > 1e-4
    # not half of it, nor that of one share
    wrong = convolved(float(shares.share_variance), 3)
    other = [20_000 * wrong[len(wrong) // 2 + x] for x in edges]
    assert stats.chisquare(seen, [*other, 20_000 - sum(other)]).pvalue < 1e-9


def renyi(p: Any, q: Any, order: float) -> float:
    # terms whose tail is lost to rounding are left out, which makes it smaller by less than can be seen
    kept = (p > 1e-280) & (q > 1e-280)
    return float(np.log(np.sum(p[kept] ** order * q[kept] ** (1 - order))) / (order - 1))


@pytest.mark.parametrize("deviation", [0.5, 0.6, 0.8, 1.0, 1.5])
@pytest.mark.parametrize("clients", [2, 3, 5])
def test_the_bound_holds_for_true_divergences(deviation: float, clients: int) -> None:
    """Of sums of discrete Gaussians, by convolution; over one integer, moved by 1 to 4."""
    total = np.longdouble(convolved(deviation**2, clients))
    tau = accounting.shares_distance(deviation**2, clients)
    for moved in (1, 2, 4):
        for order in (1.5, 2.0, 4.0, 8.0):
            p, q = total[10:-10], np.roll(total, moved)[10:-10]
            bound = order / 2 * (moved / (math.sqrt(clients) * deviation) + tau) ** 2
            assert renyi(p, q, order) <= bound + 1e-9
            # and is not far from the truth where the grid is fine
            if deviation >= 1.5:
                assert renyi(p, q, order) == pytest.approx(bound, rel=1e-3)


# what it costs


def test_renyi_epsilon_is_that_of_an_independent_computation() -> None:
    for values in (SHARED, {**SHARED, "noise_multiplier": 4.0, "survivors": 9}):
        shares = private(values)
        for rounds in (1, 10, 300):
            z, sigma = shares.noise_multiplier, math.sqrt(shares.share_variance)
            tau = 10 * sum(math.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1)) for k in range(1, 1024))
            rho = rounds / 2 * (1 / z + tau * 2**10) ** 2

            def delta(epsilon: float, rho: float = rho) -> float:
                """Canonne, Kamath, Steinke 2020, proposition 12, as a logarithm."""

                def at(order: float) -> float:
                    return (order - 1) * (order * rho - epsilon) - math.log(order - 1) + order * math.log1p(-1 / order)

                return float(optimize.minimize_scalar(at, bounds=(1 + 1e-9, 1e5), method="bounded").fun)

            wanted = optimize.brentq(lambda e: delta(e) - math.log(1e-5), 1e-3, 1e4)
            found = accounting.by_renyi(cost(shares), 1.0, rounds, shares.delta)
            assert found == pytest.approx(wanted, rel=5e-3) and 0.85 * found < shares.epsilon(rounds) < found
            # on so fine a grid as much as noise of the server
            assert shares.epsilon(rounds) == private({**values, "survivors": 0}).epsilon(rounds)


def test_on_a_coarse_grid_it_costs_more() -> None:
    """The sum is not quite a discrete Gaussian, and the bound says so; below half a step there is none."""
    coarse = private({**COARSE, "noise_multiplier": 2 * 1.2 / 256})
    assert cost(coarse, 4) < coarse.noise_multiplier < cost(coarse, 4) * 1.7
    assert cost(coarse) < cost(coarse, 4)
    with pytest.raises(ValueError, match="half a step"):
        private_run({**COARSE, "noise_multiplier": 0.9 / 256}, secure_sum=True)


# what one unit changes


@given(
    st.lists(st.lists(st.floats(allow_nan=False, width=32), min_size=3, max_size=3), min_size=1, max_size=5), st.data()
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_one_unit_changes_the_integers_by_the_bound_at_most(rows: list[list[float]], data: st.DataObject) -> None:
    rows = [[min(3e38, max(-3e38, value)) for value in row] for row in rows]
    for values, units in (({**SHARED, "unit": "example", "batch": 5}, rows), (SHARED, rows[:1])):
        shares = private(values)
        chosen = data.draw(st.integers(0, len(units) - 1))
        whole = shares.integers(shares.mean_of(units, 3))
        without = shares.integers(shares.mean_of([u for i, u in enumerate(units) if i != chosen], 3))
        assert sum((a - b) ** 2 for a, b in zip(whole, without, strict=True)) <= shares.levels**2
        # rounding is in it: integers are what is clipped
        assert whole == [sum(column) for column in zip(*map(shares.clipped, units), strict=True)]


def test_the_sum_of_what_clients_add_is_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockzo.federated.protocol.estimate import Estimate

    run = private_run(SHARED, secure_sum=True)
    monkeypatch.setattr(noise_shares, "discrete_gaussian", lambda variance: 0)
    clipped = run.private.mean_of([[2.0, -1.0, 5.0, 0.25]], 4)  # type: ignore[union-attr]
    words = [to_words(encoded(Estimate(clipped, 0.0, 1), run)) for _ in range(3)]
    total = from_words([sum(column) % WORD for column in zip(*words, strict=True)])
    mean = decoded(total, run, 3)
    # over the constant number of clients, 4, whoever is there
    assert mean.scalars == pytest.approx([0.75 * value for value in clipped], rel=1e-6) and mean.loss == 0.0
    with pytest.raises(SumError, match="nonsense|larger"):
        mean_of_sum(run.private, [1 << 60], 3)  # type: ignore[arg-type]


# rounds


def make(path: Path, clients: int = 4, quorum: int = 3, **given: Any) -> Federation:
    path.mkdir(exist_ok=True)
    chosen = private_run({**SHARED, **given}, secure_sum=True, rounds=8)
    return Federation(path, clients, chosen, RoundPolicy(quorum=quorum))


def test_rounds_with_sums_and_privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make(tmp_path / "run")
    results = [federation.transport.round() for _ in range(3)]
    federation.restart_server()
    results += [federation.transport.round() for _ in range(2)]
    federation.restart_client("c2")
    results.append(federation.transport.round())
    assert len(federation.catch_up()) == 1 and not federation.server.refusals
    assert all(r.participants == ("c0", "c1", "c2", "c3") and math.isnan(r.loss) for r in results)
    assert [r.epsilon for r in results] == [private(SHARED).epsilon(n) for n in range(1, 7)]
    # without the noise it is the clipped mean of central mode, to the bit
    monkeypatch.setattr(noise_shares, "discrete_gaussian", lambda variance: 0)
    monkeypatch.setattr("blockzo.federated.privacy.settings.discrete_gaussian", lambda variance: 0)
    quiet = make(tmp_path / "quiet").transport.round()
    (tmp_path / "central").mkdir()
    central = Federation(tmp_path / "central", 4, private_run(CENTRAL, rounds=8)).transport.round()
    assert coefficients(quiet) == coefficients(central) != coefficients(results[0])


def test_noise_of_the_record_is_at_least_what_epsilon_counts(tmp_path: Path) -> None:
    wide = {"clip": 1e-6, "noise_multiplier": 1e6}
    federation = make(tmp_path, 4, **wide)
    found = [c for _ in range(8) for c in coefficients(federation.transport.round())]
    # four shares where three are counted; over the rate of 0.05 and four clients
    deviation = 0.05 * 1.0 / 4 * math.sqrt(4 / 3)
    assert 0.4 < math.sqrt(sum(c * c for c in found) / len(found)) / deviation < 1.6


@pytest.mark.parametrize("phase", [0, 1, 2, 3])
def test_who_drops_out_counts_as_zeros_and_the_noise_still_suffices(
    phase: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Fraction] = []
    monkeypatch.setattr(noise_shares, "discrete_gaussian", lambda variance: drawn.append(variance) or 0)
    federation = make(tmp_path)
    result = federation.transport.round(deliver=losing(federation, {"c1": phase}))
    assert len(result.participants) == (4 if phase == 3 else 3) and result.record is not None
    assert sum(drawn[: 4 * 3 : 4], Fraction(0)) == private(SHARED).variance and len(set(drawn)) == 1


def test_clients_give_nothing_to_a_sum_that_lacks_noise(tmp_path: Path) -> None:
    """A server that goes on with fewer than the noise was sized for: each client refuses to open the sum."""
    federation = make(tmp_path, 5, survivors=4, quorum=4)
    messages = federation.server.open_round(federation.clients, 0.0)
    for _ in range(2):
        for name, message in messages.items():
            federation.server.receive(name, federation.clients[name].handle(message))
        messages = federation.server.advance(0.0)
    for name in ("c0", "c1", "c2", "c3"):
        federation.server.receive(name, federation.clients[name].handle(messages[name]))
    body = m.decode(federation.server.advance(0.0, over=True)["c0"], federation.server.tag).body  # type: ignore[union-attr]
    few = m.encode(m.SumMessage(body[:-4]), federation.server.tag)
    answer = federation.clients["c0"].handle(few)
    assert code_of(answer) == m.INVALID and b"with 4 or more" in answer


def test_a_sum_that_fails_late_ends_the_round_and_nobody_is_in_two(tmp_path: Path) -> None:
    federation = make(tmp_path)
    before = federation.catch_up()
    result = federation.transport.round(deliver=losing(federation, {"c0": 3, "c1": 3}))
    # counted, since the server may know it; and nothing moved
    assert result.record is not None and result.participants == () and not any(coefficients(result))
    assert result.epsilon == private(SHARED).epsilon(1)
    assert federation.catch_up() == before and federation.server.number == 1
    # one that fails before anything was added is tried again
    assert federation.transport.round(deliver=losing(federation, {"c0": 1, "c1": 1})).record is None
    assert len(federation.transport.round().participants) == 4


def test_a_server_that_is_killed_after_the_sum_gets_no_second_one(tmp_path: Path) -> None:
    federation = make(tmp_path)
    messages = federation.server.open_round(federation.clients, 0.0)
    for _ in range(3):
        for name, message in messages.items():
            federation.server.receive(name, federation.clients[name].handle(message))
        messages = federation.server.advance(0.0)
    federation.restart_server()
    for name in federation.clients:
        # on disk before it left
        federation.restart_client(name)
    result = federation.transport.round()
    assert result.record is not None and result.participants == () and not any(coefficients(result))
    assert {code for _, code in federation.server.refusals} == {m.SPENT}
    assert len(federation.transport.round().participants) == 4
    federation.run()
    assert len(federation.catch_up()) == 1
    past = m.Task(8, 8, b"", attempt=0, nonce=bytes(16))
    assert code_of(federation.clients["c0"].handle(m.encode(past, federation.server.tag))) == m.SPENT


def test_a_client_that_was_sent_back_to_the_base_does_not_add_again(tmp_path: Path) -> None:
    federation = make(tmp_path)
    client = federation.clients["c0"]
    tasks = federation.server.open_round(federation.clients, 0.0)
    federation.transport.round()
    client.handle(m.encode(m.Refused(m.DIVERGED, "begin again"), m.NO_TAG))
    assert client.position == 0
    assert code_of(client.handle(tasks["c0"])) == m.SPENT
    spoil(federation.clients["c1"])
    federation.run()
    assert len(federation.catch_up()) == 1


def test_a_client_whose_estimate_fails_adds_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation = make(tmp_path)

    def failing(number: int, slot: int) -> Any:
        raise ValueError("row 3 says: secret")

    federation.clients["c1"].worker.estimate = failing  # type: ignore[method-assign]
    assert federation.transport.round().participants == ("c0", "c1", "c2", "c3")
    assert not federation.server.refusals


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"survivors": 0}, "expected 2 to"),
        ({"survivors": 1}, "expected 2 to"),
        ({"survivors": True}, "survivors"),
        ({"sampling_rate": 0.5}, "sampling_rate 0.5"),
        ({"mode": "local", "clients": 1.0}, "mode 'local'"),
    ],
    ids=str,
)
def test_settings_that_noise_in_shares_cannot_have(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        private_run({**SHARED, **given}, secure_sum=True)


def test_survivors_belong_to_sums_and_to_the_quorum(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without secure_sum"):
        private_run(SHARED)
    with pytest.raises(ValueError, match="quorum is 3.*noise of 4"):
        make(tmp_path, 4, survivors=4)
    # a run without has the tag that it had before
    assert "survivors" not in private_run(CENTRAL).as_dict()["privacy"]
    assert PrivacySettings.from_dict(private(SHARED).as_dict()) == private(SHARED)
    assert settings().privacy is None
