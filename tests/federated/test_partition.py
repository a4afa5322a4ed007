"""Partitions: every row has one owner, a seed means one split, and each form has the skew that it promises."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockzo.federated.client import partition

LABELS = [i % 3 for i in range(600)]


@pytest.mark.parametrize("form", ["iid", "dirichlet", "label"])
@given(st.integers(1, 40), st.integers(0, 5))
def test_every_row_has_one_owner_and_a_seed_one_split(form: str, clients: int, seed: int) -> None:
    split = {
        "iid": lambda s: partition.iid(len(LABELS), clients, s),
        "dirichlet": lambda s: partition.dirichlet(LABELS, clients, 1.0, s),
        "label": lambda s: partition.by_label(LABELS, clients, s),
    }[form]
    found = split(seed)
    assert len(found) == clients and all(found)
    assert sorted(row for rows in found for row in rows) == list(range(len(LABELS)))
    assert found == split(seed)
    if clients > 1:
        assert found != split(seed + 1)


def skew(parts: list[list[int]]) -> float:
    """Mean share of a client's most frequent label."""
    return sum(max(Counter(LABELS[row] for row in rows).values()) / len(rows) for rows in parts) / len(parts)


def test_the_skew_is_that_of_the_form() -> None:
    even = skew(partition.iid(600, 10, 0))
    mild = skew(partition.dirichlet(LABELS, 10, 100.0, 0))
    strong = skew(partition.dirichlet(LABELS, 10, 0.2, 0))
    assert even < 0.45 and mild < 0.5 < strong
    assert skew(partition.by_label(LABELS, 10, 0)) >= 0.5
    sizes = [len(rows) for rows in partition.iid(601, 10, 0)]
    assert max(sizes) - min(sizes) <= 1


def test_a_column_gives_a_client_for_each_value() -> None:
    values = ["b", "a", "b", "c", "a", "b"]
    assert partition.by_column(values) == [[1, 4], [0, 2, 5], [3]]
    assert partition.by_column(values, 2) == [[1, 4], [0, 2, 5]]
    with pytest.raises(ValueError, match="3 values"):
        partition.by_column(values, 4)


def test_what_cannot_be_split_is_refused() -> None:
    for call in (
        lambda: partition.iid(3, 4, 0),
        lambda: partition.by_label([0, 1, 0], 2, 0),
        lambda: partition.dirichlet(LABELS, 5, 0.0, 0),
        lambda: partition.dirichlet([0] * 20, 20, 0.001, 0),
    ):
        with pytest.raises(ValueError, match="expected|fewer clients"):
            call()
