"""Combining scalars: means by examples, robust forms, and no dependence on the order of clients."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockzo.federated.protocol.aggregates import AGGREGATES
from blockzo.federated.protocol.combine import Contribution, combine, weights_of
from blockzo.federated.protocol.messages import Reply
from blockzo.federated.protocol.records import decode_record, encode_record
from blockzo.federated.protocol.round_record import round_record
from tests.federated.problem import settings

FLOATS = st.floats(width=32, min_value=-1e6, max_value=1e6)
CONTRIBUTIONS = st.lists(
    st.builds(Contribution, st.tuples(FLOATS, FLOATS), st.integers(1, 1000), FLOATS), min_size=1, max_size=9
)


@given(CONTRIBUTIONS)
def test_the_mean_weighs_by_examples(found: list[Contribution]) -> None:
    total = sum(c.examples for c in found)
    for entry, value in enumerate(combine(found, settings())):
        exact = sum(Fraction(c.scalars[entry]) * c.examples for c in found) / total
        assert value == pytest.approx(float(exact), rel=1e-12, abs=1e-12)
    equal = combine(found, settings(weighting="equal"))
    assert equal[0] == pytest.approx(
        float(sum(Fraction(c.scalars[0]) for c in found) / len(found)), rel=1e-12, abs=1e-12
    )
    assert sum(weights_of(found, settings())) == pytest.approx(1)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@given(found=CONTRIBUTIONS, data=st.data())
def test_the_order_of_clients_does_not_matter(aggregate: str, found: list[Contribution], data: st.DataObject) -> None:
    run = settings(aggregate=aggregate)
    assert combine(found, run) == combine(data.draw(st.permutations(found)), run)


def one(*values: float) -> list[Contribution]:
    return [Contribution((value,), 10, 0.0) for value in values]


def test_liars_are_left_out_by_robust_forms() -> None:
    honest = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95]
    lied = one(*honest, 1e6, -1e6)
    assert combine(lied, settings(aggregate="median")) == [pytest.approx(1.0, abs=0.06)]
    assert combine(lied, settings(aggregate="trimmed-mean", trim=0.25)) == [pytest.approx(1.0, abs=0.06)]
    few = [Contribution((1.0 if value > 0 else -1.0,), 10, 0.0) for value in (*honest, -1e6)]
    assert combine(few, settings(aggregate="sign")) == [1.0]


def test_small_numbers_of_clients() -> None:
    for aggregate in ("mean", "trimmed-mean", "median"):
        assert combine(one(2.5), settings(aggregate=aggregate)) == [2.5]
    assert combine(one(1.0, 2.0), settings(aggregate="median")) == [1.5]
    assert combine(one(1.0, 2.0), settings(aggregate="trimmed-mean", trim=0.4)) == [1.5]
    assert combine(one(1.0, -1.0), settings(aggregate="sign")) == [1.0]


def test_a_resting_block_leaves_no_negative_zeros_in_a_record_of_signs() -> None:
    """They are not in its bytes, and would turn a weight of -0.0 to 0.0 where the record was made, and nowhere else."""
    run = settings(aggregate="sign", lr=(0.0, 0.1))
    replies = [Reply(0, 1, 0.5, tuple(-1.0 for _ in range(run.scalars)))]
    record, _ = round_record(run, 0, replies)
    again, _ = decode_record(encode_record(record, run), 0, 0, run)
    signs = [[math.copysign(1, c) for c in block.coefficients] for block in record.blocks]
    assert signs == [[math.copysign(1, c) for c in block.coefficients] for block in again.blocks]
    assert set(signs[0]) == {1.0} and set(signs[1]) == {-1.0}
