from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cpu import cases


@pytest.fixture(params=cases.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU has, in turn."""
    with cases.isa(request.param):
        yield request.param


@pytest.fixture(params=cases.LINEAR_ISAS)
def linear_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same of products, a matrix unit among them."""
    with cases.isa(request.param):
        yield request.param
