from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockzo.optim.schedules import SCHEDULES, factor, rates


def test_shapes() -> None:
    assert [factor("constant", t, 4) for t in range(4)] == [1.0] * 4
    assert [factor("linear", t, 4) for t in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [round(factor("cosine", t, 4), 4) for t in range(4)] == [1.0, 0.8536, 0.5, 0.1464]
    assert [factor("linear", t, 6, warmup=2) for t in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


@given(st.sampled_from(SCHEDULES), st.integers(1, 500), st.integers(0, 600), st.integers(0, 600))
def test_rates_stay_between_nothing_and_the_base(schedule: str, steps: int, warmup: int, step: int) -> None:
    assert 0.0 <= factor(schedule, step, steps, warmup) <= 1.0
    assert rates(schedule, [2.0, 0.5], steps, warmup)(step) == [
        2.0 * factor(schedule, step, steps, warmup),
        0.5 * factor(schedule, step, steps, warmup),
    ]


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="constant, linear, cosine"):
        rates("step", [1.0], 10)
