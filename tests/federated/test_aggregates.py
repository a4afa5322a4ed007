"""The registry of aggregates: each says what it goes with; settings, simulation and docs take its word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from blockzo.federated.protocol import aggregates
from blockzo.federated.protocol.aggregates import AGGREGATES, Aggregate
from blockzo.federated.protocol.aggregates.base import Vectors
from blockzo.federated.protocol.aggregates.krum import Krum
from blockzo.federated.protocol.settings import RunSettings
from blockzo.finetune.errors import UserError
from blockzo.simulate.settings import Federation, resumed
from tests.federated.problem import settings

PRIVATE = {"mode": "central", "clip": 2.0, "noise_multiplier": 1.0, "delta": 1e-5, "clients": 4.0}
WITH: dict[str, dict[str, Any]] = {
    "own_directions": {"own_directions": True},
    "secure_sum": {"secure_sum": True, "weighting": "equal"},
    "central_noise": {"privacy": PRIVATE, "weighting": "equal"},
    "local_steps": {"local_steps": 2},
}
"""What an aggregate says that it goes with -> settings in which it must."""


@dataclass(frozen=True)
class Largest(Aggregate):
    """Goes with nothing."""

    least: float = 0.0

    name: ClassVar[str] = "largest"
    summary: ClassVar[str] = "the largest"
    local_steps: ClassVar[bool] = False

    def combine(self, vectors: Vectors, counts: Sequence[int]) -> list[float]:
        return [max(self.least, *entry) for entry in zip(*vectors, strict=True)]


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(AGGREGATES, "largest", Largest)
    return "largest"


class Alias:
    """What list[int] is in Python 3.10: an instance of type of which no ABC takes a subclass test."""

    __class__ = type  # type: ignore[assignment]
    __module__ = "builtins"


def test_aliases_of_types_beside_an_aggregate_are_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates.krum, "Rows", Alias(), raising=False)
    assert aggregates._found() == AGGREGATES


def test_the_default_stands_first() -> None:
    assert next(iter(AGGREGATES)) == settings().aggregate == Federation().aggregate


@pytest.mark.parametrize("what", WITH)
@pytest.mark.parametrize("name", [*AGGREGATES, "largest"])
def test_settings_take_what_an_aggregate_goes_with_and_nothing_else(name: str, what: str, largest: str) -> None:
    if getattr(AGGREGATES[name], what):
        assert settings(aggregate=name, **WITH[what]).combining.name == name
    else:
        with pytest.raises(ValueError, match=name):
            settings(aggregate=name, **WITH[what])


def test_options_travel_whole_and_only_where_there_are_some(largest: str) -> None:
    assert "aggregate_options" not in settings().as_dict()
    run = settings(aggregate=largest)
    assert run.as_dict()["aggregate_options"] == {"least": 0.0}
    assert RunSettings.from_dict(run.as_dict()) == run
    assert RunSettings.from_dict({**run.as_dict(), "aggregate_options": {"least": 2}}).combining == Largest(2.0)
    assert settings(aggregate="trimmed-mean", trim=0.1).as_dict()["trim"] == 0.1
    assert "aggregate_options" not in settings(aggregate="trimmed-mean").as_dict()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"aggregate": "smallest"}, "expected one of mean, "),
        ({"aggregate": "largest", "aggregate_options": {"most": 1}}, "no option 'most'; expected some of: least"),
        ({"aggregate": "largest", "aggregate_options": {"least": "1"}}, "least"),
        ({"aggregate": "median", "aggregate_options": {"least": 1}}, "expected some of: none"),
        ({"aggregate": "trimmed-mean", "aggregate_options": {"trim": 0.1}}, "a setting of its own; give trim"),
        ({"aggregate": "mean", "trim": 0.5}, "trim is 0.5"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(given: dict[str, Any], told: str, largest: str) -> None:
    with pytest.raises(ValueError, match=told):
        settings(**given)
    with pytest.raises(ValueError, match=told):
        RunSettings.from_dict({**settings().as_dict(), **given})


def test_a_simulation_continues_with_the_options_that_it_began_with() -> None:
    from blockzo.finetune.settings import Settings

    began = Federation(aggregate="krum", aggregate_options="keep=2")
    assert Federation.from_dict(began.as_dict()) == began and began.combining == Krum(keep=2)
    assert resumed(Settings("tiny"), began, {"aggregate_options": "keep=2"})[1] == began
    with pytest.raises(UserError, match="aggregate-options was"):
        resumed(Settings("tiny"), began, {"aggregate_options": "keep=3"})
