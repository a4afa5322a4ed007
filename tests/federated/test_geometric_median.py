"""The geometric median is the least sum of distances, by looking elsewhere; and half of the clients cannot carry it off."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockzo.federated.protocol.aggregates.geometric_median import GeometricMedian

VECTORS = st.lists(st.tuples(st.integers(-9, 9).map(float), st.integers(-9, 9).map(float)), min_size=1, max_size=7)


def cost(point: list[float], vectors: list[tuple[float, ...]]) -> float:
    return math.fsum(math.dist(point, vector) for vector in vectors)


@given(VECTORS)
def test_no_other_point_is_nearer_to_all(vectors: list[tuple[float, ...]]) -> None:
    found = cost(GeometricMedian(steps=5000).combine(vectors, [1] * len(vectors)), vectors)
    # the function is convex: a grid, then finer ones around its best point
    best, width = [0.0, 0.0], 9.0
    for _ in range(30):
        grid = [[best[0] + width * i / 4, best[1] + width * j / 4] for i in range(-4, 5) for j in range(-4, 5)]
        best, width = min(grid, key=lambda point: cost(point, vectors)), width * 0.6
    assert found <= cost(best, vectors) * (1 + 1e-4) + 1e-9


def test_of_a_triangle_it_is_fermats_point() -> None:
    """Of an equilateral one the centre; with a corner of more than 120 degrees that corner."""
    centred = [(math.cos(a), math.sin(a)) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert GeometricMedian().combine(centred, [1] * 3) == pytest.approx([0.0, 0.0], abs=1e-8)
    flat = [(-5.0, 0.0), (0.0, 0.5), (5.0, 0.0)]
    assert GeometricMedian(steps=5000).combine(flat, [1] * 3) == pytest.approx([0.0, 0.5], abs=1e-2)
    # nothing pulls at the one in the middle
    assert GeometricMedian().combine([(-1.0, 0.0), (0.0, 0.0), (1.0, 0.0)], [1] * 3) == [0.0, 0.0]


@pytest.mark.parametrize("lie", [10.0, 1e6, 1e30])
def test_less_than_half_cannot_carry_it_off(lie: float) -> None:
    chance = random.Random(2)
    honest = [tuple(1 + chance.gauss(0, 0.1) for _ in range(6)) for _ in range(6)]
    lied = GeometricMedian().combine([*honest, *[(lie,) * 6] * 4], [1] * 6 + [10**6] * 4)
    assert lied == pytest.approx([1.0] * 6, abs=0.5)


def test_clients_that_agree_are_answered_with_what_they_say() -> None:
    assert GeometricMedian().combine([(0.1, -3.0)] * 7, [1] * 7) == [0.1, -3.0]
    with pytest.raises(ValueError, match="steps is 0"):
        GeometricMedian(steps=0)
