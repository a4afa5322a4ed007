"""Evolution strategies on ranks."""

from __future__ import annotations

import pytest

from blockzo.methods.rank_es import RankES


def test_only_the_order_counts() -> None:
    few, far = RankES(4).scalars([3.0, 1.0, 2.0, 9.0], [0.1]), RankES(4).scalars([30.0, -5.0, 2.0, 1e9], [0.1])
    assert few == far
    assert list(few[0].values()) == pytest.approx([1 / 6 / 0.4, -0.5 / 0.4, -1 / 6 / 0.4, 0.5 / 0.4])


def test_equal_losses_share_their_mean_rank() -> None:
    (found,) = RankES(3).scalars([2.0, 1.0, 2.0], [1.0])
    assert list(found.values()) == pytest.approx([1 / 12, -1 / 6, 1 / 12])
    assert set(RankES(3).scalars([0.7] * 3, [1.0])[0].values()) == {0.0}


def test_blocks_differ_by_eps_alone() -> None:
    one, two = RankES(2).scalars([1.0, 2.0], [0.1, 0.2])
    assert [2 * s for s in two.values()] == pytest.approx(list(one.values()))
