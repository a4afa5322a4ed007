"""LoRA in federated rounds: adapters that begin alike on every client, one digest, and a replay from base and journal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr")
from blockzo import digest
from blockzo.federated.client.client import Client
from blockzo.federated.flower import text
from blockzo.federated.flower.exchange import Exchange
from blockzo.federated.flower.identity import Identities
from blockzo.federated.flower.rounds import Rounds
from blockzo.federated.server.server import Server
from blockzo.finetune import Settings, replay
from blockzo.finetune.models.loading import load
from blockzo.journal.file import Journal, JournalError
from blockzo.simulate import Federation, simulate
from tests.flower.local_grid import LocalGrid

Tiny = Callable[[str], Path]
PEFT = "lora:r=2,targets=q_proj+down_proj"


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "answers.jsonl"
    rows = [{"user": f"u{i % 4}", "prompt": f"story {i} is", "completion": " very good"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": "sft", "train": str(path), "holdout": 4, "batch": 3, "lr": "1e-1", "eps": "1e-2"}


ROUNDS = {
    "shared": {},
    "local steps, own directions": {"local_steps": 2, "own_directions": True},
    "secure sums": {"secure_sum": True, "sample": 3},
    "a planner": {},
}


@pytest.mark.parametrize("kind", ROUNDS)
def test_an_adapter_of_rounds_is_rebuilt_from_base_and_journal(
    kind: str, tiny: Tiny, answers: dict[str, Any], tmp_path: Path
) -> None:
    planned = {"method": "auto", "lr": None, "eps": "1e-3"} if kind == "a planner" else {}
    told = Settings(str(tiny("llama")), **{**answers, **planned}, steps=4, peft=PEFT, seed=3)
    by_user = Federation(partition="column", column="user", **{"sample": 2, **ROUNDS[kind]})
    result = simulate(told, by_user, tmp_path / "run")
    assert result["peft"]["r"] == 2 and result["up_to_date"] == result["clients"] == 4
    journal = Journal.open(tmp_path / "run" / "journal.bz")
    assert all(".lora_" in name for name in journal.layout)
    begun = load(told.model, "float32", seed=3, task="sft", peft=PEFT)
    assert digest(begun.model) == journal.base_digest != result["final_digest"]
    again = replay(told.model, tmp_path / "run" / "journal.bz", tmp_path / "again")
    assert again["verified"] and again["digest"] == result["final_digest"]
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(tmp_path / "run" / "model" / file), load_file(tmp_path / "again" / file)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    other = load(told.model, "float32", seed=4, task="sft", peft=PEFT)
    assert digest(other.model) != journal.base_digest
    for base in (tiny("qwen2"), tmp_path / "again"):
        with pytest.raises(JournalError, match="is not the model this journal begins at"):
            replay(str(base), tmp_path / "run" / "journal.bz", tmp_path / "no")


def test_a_pool_ends_with_its_digest_and_is_not_replayed(tiny: Tiny, answers: dict[str, Any], tmp_path: Path) -> None:
    told = Settings(str(tiny("llama")), **answers, steps=3, peft=PEFT, method="mezo")
    assert simulate(told, Federation(clients=3, seed_pool=8), tmp_path / "run")["up_to_date"] == 3
    with pytest.raises(JournalError, match="finite pool of directions"):
        replay(told.model, tmp_path / "run" / "journal.bz", tmp_path / "no")


def test_fedavg_sends_the_adapter_alone(tiny: Tiny, answers: dict[str, Any], tmp_path: Path) -> None:
    told = Settings(str(tiny("llama")), **answers, steps=2, peft=PEFT)
    result = simulate(told, Federation(engine="fedavg", clients=3, sample=2), tmp_path / "run")
    assert result["bytes_up_of_an_answer"] == 4 * 4 * 2 * ((32 + 32) + (64 + 32))


def test_flowers_workers_train_an_adapter(tiny: Tiny, answers: dict[str, Any], tmp_path: Path) -> None:
    """Three nodes, two of which are asked in a round; all end with the server's digest."""
    torch.set_num_threads(1)
    config = {
        **{name.replace("_", "-"): value for name, value in answers.items()},
        **{
            "model": str(tiny("llama")),
            "peft": PEFT,
            "partition": "iid",
            "num-partitions": 3,
            "rounds": 3,
            "clients": 2,
        },
    }
    plan = text.plan(config)
    server = Server.create(tmp_path / "j", plan.settings, plan.base_digest, plan.layout, plan.policy, plan.replica)
    grid = LocalGrid({node: Client(text.worker({**config, "partition-id": node})) for node in range(3)})
    rounds = Rounds(server, Exchange(grid, server.settings.run, Identities("registered"), ttl=5.0), 3)
    rounds.run()
    peers = rounds.synchronize(30)
    assert server.replica is not None
    assert {peer.about["digest"] for peer in peers.values()} == {server.replica.digest()} and len(peers) == 3
    assert server.replica.digest() != plan.base_digest and len(server.journal.layout) == 4 * 2 * 2
