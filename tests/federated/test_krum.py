"""Krum against its definition in fractions, and what it is for: clients that lie."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockzo.federated.protocol.aggregates.krum import Krum
from blockzo.federated.protocol.estimate import Estimate
from tests.federated.problem import Federation, settings, worker

VECTORS = st.lists(st.tuples(*[st.integers(-8, 8).map(float)] * 3), min_size=1, max_size=7)
"""Squares of these are exact in float64, so that scores are equal or not as in fractions."""


def defined(vectors: list[tuple[float, ...]], byzantine: float, keep: int) -> list[Fraction]:
    """By trying every neighbourhood: a score is the least sum of squared distances to n - f - 2 others."""
    n = len(vectors)
    lying = next(f for f in range(n, -1, -1) if f == 0 or (2 * f + 2 < n and f <= math.ceil(byzantine * n)))
    size = max(1, n - lying - 2) if n > 1 else 0
    scores = [
        min(
            sum(
                (sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(one, vectors[j], strict=True)) for j in near),
                Fraction(0),
            )
            for near in combinations([j for j in range(n) if j != i], size)
        )
        for i, one in enumerate(vectors)
    ]
    last = sorted(scores)[min(keep, n) - 1]
    kept = [vector for vector, score in zip(vectors, scores, strict=True) if score <= last]
    return [sum(map(Fraction, entry), Fraction(0)) / len(kept) for entry in zip(*kept, strict=True)]


@given(VECTORS, st.sampled_from([0.0, 0.2, 0.25, 0.49]), st.integers(1, 8))
def test_it_is_what_its_definition_says(vectors: list[tuple[float, ...]], byzantine: float, keep: int) -> None:
    found = Krum(byzantine, keep).combine(vectors, [1] * len(vectors))
    assert found == pytest.approx([float(value) for value in defined(vectors, byzantine, keep)], rel=1e-15, abs=0)


def test_without_ties_it_answers_with_what_a_client_sent() -> None:
    chance = random.Random(0)
    vectors = [tuple(chance.gauss(0, 1) for _ in range(5)) for _ in range(9)]
    assert tuple(Krum().combine(vectors, [1] * 9)) in vectors


def test_liars_who_stand_together_are_left_out() -> None:
    """Two of eight send the same far vector: each is at no distance from the other, and far from all else."""
    chance = random.Random(1)
    honest = [tuple(1 + chance.gauss(0, 0.1) for _ in range(4)) for _ in range(6)]
    lies = [(5.0,) * 4] * 2
    for keep in (1, 5):
        found = Krum(0.25, keep).combine([*honest, *lies], [1, 1, 1, 1, 1, 1, 999, 999])
        assert found == pytest.approx([1.0] * 4, abs=0.3)
    # all eight kept is the mean, which they move
    assert Krum(0.25, 8).combine([*honest, *lies], [1] * 8)[0] > 1.8


@pytest.mark.parametrize("wrong", [{"byzantine": 0.5}, {"byzantine": -0.1}, {"byzantine": math.nan}, {"keep": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        Krum(**wrong)


def trained(folder: Path, aggregate: str, lie: float) -> float:
    """Mean held-out loss of the honest clients after 40 rounds of eight clients, two of which send `lie` times their scalars."""
    folder.mkdir()
    run = settings(rounds=40, aggregate=aggregate, lr=(0.05, 0.05))
    federation = Federation(folder, clients=8, chosen=run)
    for name in ("c6", "c7"):
        liar: Any = federation.clients[name].worker
        honest = liar.estimate

        def estimate(number: int, slot: int, honest: Any = honest) -> Estimate:
            found = honest(number, slot)
            return Estimate(tuple(lie * scalar for scalar in found.scalars), found.loss, found.examples)

        liar.estimate = estimate
    federation.run()
    assert not federation.server.refusals
    assert federation.replica is not None
    losses = [worker(i, weights=federation.replica).scores()[1] for i in range(6)]
    federation.server.close()
    return sum(losses) / len(losses)


def test_a_run_with_liars_trains_as_one_without(tmp_path: Path) -> None:
    sound = trained(tmp_path / "sound", "mean", 1.0)
    robust, fooled = (trained(tmp_path / name, name, -8.0) for name in ("krum", "mean"))
    begin = sum(worker(i).scores()[1] for i in range(6)) / 6
    print(f"begin {begin:.3f}, sound {sound:.3f}, krum {robust:.3f}, mean {fooled:.3f}")
    assert fooled > begin
    assert robust < begin - 0.5 * (begin - sound)
