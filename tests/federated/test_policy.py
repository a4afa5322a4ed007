"""What a server may ask is bounded by the client's owner: every field of a policy refuses a run that goes beyond it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from blockzo.federated.client.client import Client
from blockzo.federated.client.policy import ClientPolicy, PolicyError
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RunSettings
from tests.federated.problem import Federation, settings, worker

PRIVATE = {"mode": "central", "clip": 2.0, "noise_multiplier": 1.0, "delta": 1e-5, "clients": 4.0}


def run(**changes: Any) -> RunSettings:
    return replace(settings(rounds=50), weighting="equal", privacy=PRIVATE, **changes)


# field -> what the owner wants, and the run that goes beyond it
BEYOND: dict[str, tuple[dict[str, Any], RunSettings]] = {
    "privacy": ({"privacy": "any"}, settings(rounds=50)),
    "unit": ({"privacy": "any", "unit": "example"}, run()),
    "least_noise": ({"privacy": "any", "least_noise": 1.5}, run()),
    "most_clip": ({"privacy": "any", "most_clip": 3.0}, replace(run(), privacy={**PRIVATE, "clip": 1e30})),
    "most_epsilon": ({"privacy": "any", "most_epsilon": 5.0}, run()),
    "most_delta": ({"privacy": "any", "most_delta": 1e-6}, run()),
    "secure_sum": ({"secure_sum": True}, settings()),
    "methods": ({"methods": ("FZOO",)}, settings()),
    "most_directions": ({"most_directions": 1}, settings()),
    "most_local_steps": ({"most_local_steps": 1}, replace(settings(), local_steps=2)),
    "most_rounds": ({"most_rounds": 40}, settings(rounds=50)),
    "most_pool": ({"most_pool": 100}, replace(settings(), weight_decay=0.0, stochastic_rounding=False, pool=4096)),
    "most_eps": ({"most_eps": 1e-9}, settings()),
    "most_lr": ({"most_lr": 1e-9}, settings()),
}


def test_every_field_is_tried() -> None:
    assert set(BEYOND) | {"held_out"} == {field.name for field in fields(ClientPolicy)}


@pytest.mark.parametrize("name", BEYOND)
def test_a_run_beyond_a_policy_is_refused_before_a_scalar_leaves(name: str, tmp_path: Path) -> None:
    given, hostile = BEYOND[name]
    policy = ClientPolicy.from_dict(given)
    with pytest.raises(PolicyError):
        policy.check(hostile)
    client = Client(worker(0), tmp_path / "c.bz", policy=policy)
    welcome = m.encode(m.Welcome(hostile.as_dict(), client.worker.base_digest, 0), b"12345678")
    answer = m.decode(client.handle(welcome), None, None)
    assert isinstance(answer, m.Refused) and answer.code == m.MISMATCH
    assert client.settings is None and not (tmp_path / "c.bz").exists()
    # the same run is taken by who asks for less
    ClientPolicy().check(hostile)


def test_a_client_that_comes_back_asks_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(rounds=5))
    federation.transport.round()
    federation.clients["c0"].close()
    with pytest.raises(PolicyError, match="asks for"):
        Client(worker(0), tmp_path / "c0.bz", policy=ClientPolicy(privacy="any"))


def test_held_out_scores_may_be_kept(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(rounds=5))
    client = federation.clients["c0"]
    client.policy = ClientPolicy(held_out=False)
    (task,) = federation.server.ask_scores(["c0"]).values()
    answer = m.decode(client.handle(task), client.tag, client.settings)
    assert isinstance(answer, m.Refused) and "held-out" in answer.reason


@pytest.mark.parametrize(
    "given",
    [{"most_clip": -1.0}, {"least_noise": float("nan")}, {"privacy": "some"}, {"unit": "row"}, {"methods": 3}, {"clip": 1.0},
     {"secure_sum": 1}, {"least_noise": 1.0}],
    ids=str,
)  # fmt: skip
def test_a_policy_that_says_nothing_sound_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises((ValueError, TypeError)):
        ClientPolicy.load(tmp_path / "policy.json")
