"""`method = "auto"` through the ready-made task: the server measures what blocks cost, and a run that goes on keeps to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo.federated.client import finetuning
from blockzo.federated.client.client import Client
from blockzo.federated.flower import server_app, text
from blockzo.federated.flower.plan import server_folder
from blockzo.federated.server.hooks import Hooks
from blockzo.finetune.errors import UserError
from blockzo.journal.file import Journal
from tests.finetune.conftest import (  # noqa: F401 - fixtures
    rows,
    tiny,
)
from tests.flower.local_grid import LocalGrid

ROUNDS, STOP = 8, 5


@pytest.fixture
def config(
    tiny: Callable[[str], Path],  # noqa: F811
    rows: Callable[..., Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    torch.set_num_threads(1)
    monkeypatch.setattr("blockzo.federated.flower.server_app.bound_waits", lambda: None)
    own = {"task": "custom", "train": str(rows(40)), "template": "{text} It was {label}.", "labels": "0=no,1=yes"}
    run = {"method": "auto", "batch": 4, "partition": "iid", "run": "ab" * 16, "rounds": ROUNDS}
    plan = "blockzo.federated.flower.text:plan"
    return {"model": str(tiny("llama")), **own, **run, "plan": plan, "identity": "registered", "clients": 2}


def grid(config: dict[str, Any]) -> LocalGrid:
    own = [{**config, "partition-id": number, "num-partitions": 2} for number in range(2)]
    return LocalGrid({number: Client(text.worker(config)) for number, config in enumerate(own)})


def result_of(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((server_folder(config) / "result.json").read_text())
    return found


def test_a_run_that_was_stopped_keeps_its_costs_and_ends_as_one_that_was_not(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(result: Any, metrics: Any) -> None:
        if result.number + 1 == STOP:
            raise KeyboardInterrupt

    nodes = grid(config)
    with pytest.raises(KeyboardInterrupt):
        server_app.run(nodes, config, Hooks(on_round_end=stop))
    journal = server_folder(config) / "journal"
    told = Journal.open(journal).metadata["federated"]["method"]
    assert told["name"] == "Auto" and all(cost > 0 for cost in told["costs"])

    def never(*args: Any) -> None:
        raise AssertionError("costs were measured again")

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "measured", never)
        server_app.run(nodes, config, Hooks())
    result = result_of(config)
    assert result["first_round"] == STOP and result["rounds"] == ROUNDS and not result["refusals"]
    assert {about["digest"] for about in result["clients"].values()} == {result["digest"]}

    # a run of the same costs that nobody stopped
    monkeypatch.setattr(finetuning, "measured", lambda *args: told)
    whole = {**config, "run-name": "whole"}
    server_app.run(grid(config), whole, Hooks())
    assert result_of(whole)["digest"] == result["digest"]
    first, second = (Journal.open(server_folder(each) / "journal").records() for each in (config, whole))
    assert first == second and result["digest"] != Journal.open(journal).base_digest


def test_a_planner_that_was_told_otherwise_does_not_go_on(config: dict[str, Any]) -> None:
    server_app.open_server(config).close()
    with pytest.raises(ValueError, match=r"was begun with lr .*, now .*run-name"):
        server_app.open_server({**config, "lr": "3"})
    # of another method the journal has no costs
    with pytest.raises(ValueError, match=r"was begun with method .*run-name"):
        server_app.open_server({**config, "method": "mezo", "lr": "1"})


def test_what_a_planner_does_not_go_with_is_refused_before_a_round(config: dict[str, Any]) -> None:
    with pytest.raises((UserError, ValueError), match="local"):
        text.plan({**config, "local-steps": 2})
