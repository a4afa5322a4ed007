"""Batches are a pure function of seed and step, and similar in length."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blockzo.finetune.data.order import BatchOrder, by_length, shuffled


@given(st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_shuffled_is_a_permutation_of_its_arguments_alone(count: int, seed: int, epoch: int) -> None:
    order = shuffled(count, seed, "rows", epoch)
    assert sorted(order) == list(range(count))
    assert order == shuffled(count, seed, "rows", epoch)
    if count > 20:
        assert order != shuffled(count, seed ^ 1, "rows", epoch)
        assert order != shuffled(count, seed, "rows", epoch + 1)
        assert order != shuffled(count, seed, "other", epoch)


def test_the_order_is_fixed_for_ever() -> None:
    """These orders are part of what a journal means: a change here would break every --resume."""
    assert shuffled(8, 0, "rows") == [6, 4, 1, 2, 0, 5, 3, 7]
    assert BatchOrder([5, 3, 9, 1, 7, 2, 8, 4], 2, seed=1).rows(5) == [0, 4]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 20), st.integers(0, 99), st.integers(1, 5)
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_row_at_most_once(lengths: list[int], batch: int, seed: int, pool: int) -> None:
    order = BatchOrder(lengths, batch, seed, pool)
    size = min(batch, len(lengths))
    epoch = [order.rows(step) for step in range(order.per_epoch)]
    rows = [row for part in epoch for row in part]
    assert all(len(part) == size for part in epoch)
    assert len(rows) == len(set(rows)) == len(lengths) // size * size
    # asked in another order, after other steps, by another object: the same batches
    again = BatchOrder(lengths, batch, seed, pool)
    again.rows(3 * order.per_epoch)
    assert [again.rows(step) for step in reversed(range(order.per_epoch))] == epoch[::-1]


def test_batches_of_similar_lengths_need_little_padding() -> None:
    lengths = [5 + (37 * i) % 56 for i in range(640)]

    def padded(pool: int) -> float:
        order = BatchOrder(lengths, 16, seed=3, pool=pool)
        batches = [order.rows(step) for step in range(order.per_epoch)]
        return sum(order.width(b) * len(b) for b in batches) / sum(lengths)

    assert padded(16) < 1.1 < 1.5 < padded(1)


def test_long_and_short_batches_are_mixed() -> None:
    order = BatchOrder(list(range(1, 321)), 10, seed=0)
    widths = [order.width(order.rows(step)) for step in range(order.per_epoch)]
    assert widths != sorted(widths)


@given(st.lists(st.integers(1, 9), max_size=50), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_by_length_covers_all_rows(lengths: list[int], batch: int) -> None:
    groups = by_length(lengths, batch)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert [lengths[row] for group in groups for row in group] == sorted(lengths)
