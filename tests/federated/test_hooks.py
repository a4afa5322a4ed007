"""Functions of the server's owner after rounds: when they are called, with what, and that a run goes on after one that raised."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo.federated.server.hooks import Hooks
from blockzo.federated.server.open_round import RoundResult
from tests.federated.problem import Federation, loss, settings, teacher_labels


def score(rounds: int, model: torch.nn.Module) -> dict[str, float]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(77))
    with torch.no_grad():
        return {"loss": float(loss(model, (x, teacher_labels(x)))), "rounds": rounds}


def test_an_owner_sees_the_model_get_better(tmp_path: Path) -> None:
    ended: list[tuple[int, int, dict[str, float]]] = []

    def on_round_end(result: RoundResult, metrics: Any) -> None:
        ended.append((result.number, len(result.participants), dict(metrics)))

    federation = Federation(tmp_path, chosen=settings(rounds=11, lr=(0.3, 0.3)))
    found = federation.transport.run(Hooks(score, on_round_end, every=4))
    assert [metrics.get("rounds") for metrics in found] == [0, *[None] * 3, 4, *[None] * 3, 8, None, None, 11]
    assert found[-1]["loss"] < found[0]["loss"]
    assert [(number, there) for number, there, _ in ended] == [(number, 4) for number in range(11)]
    assert [metrics for _, _, metrics in ended] == found[1:]
    assert all(client.position == 11 for client in federation.clients.values())


def test_a_run_goes_on_after_a_function_that_raised(tmp_path: Path) -> None:
    def raising(rounds: int, model: Any) -> dict[str, float]:
        if rounds == 2:
            raise RuntimeError("the disk of the scores is full")
        return score(rounds, model)

    federation = Federation(tmp_path, chosen=settings(rounds=4))
    with pytest.raises(RuntimeError, match="the disk of the scores is full"):
        federation.transport.run(Hooks(raising))
    assert federation.server.number == 2
    found = federation.transport.run(Hooks(score))
    # where a run goes on there is no score before it
    assert [metrics.get("rounds") for metrics in found] == [None, 3, 4]
    assert len(federation.catch_up()) == 1


@pytest.mark.parametrize("given", [3, {"loss": "low"}, {"loss": math.nan}, {"loss": None}])
def test_what_are_no_metrics_is_refused(given: Any, tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(rounds=1))
    with pytest.raises(ValueError, match="evaluate_fn returned .*expected (finite )?numbers"):
        federation.transport.run(Hooks(lambda rounds, model: given))


def test_a_model_is_needed(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(rounds=1), replica=False)
    assert federation.transport.run(Hooks(on_round_end=lambda result, metrics: None)) == [{}, {}]
    (tmp_path / "other").mkdir()
    federation = Federation(tmp_path / "other", chosen=settings(rounds=1), replica=False)
    with pytest.raises(ValueError, match="this server has none; give it a replica"):
        federation.transport.run(Hooks(score))
    with pytest.raises(ValueError, match="every is 0; expected 1"):
        Hooks(every=0)
