"""The server's loop over a Grid: nodes that fail, are silent, come back without their state, diverge, or claim another's name."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch

from blockzo.federated.client.client import Client
from blockzo.federated.client.worker import Worker
from blockzo.federated.flower import envelope, server_app, tiny
from blockzo.federated.flower.exchange import Exchange
from blockzo.federated.flower.identity import Identities
from blockzo.federated.flower.plan import open_server, server_folder
from blockzo.federated.flower.rounds import Rounds
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.federated.server.hooks import Hooks
from blockzo.federated.server.server import Server
from tests.flower.conftest import CONFIG, digest_in_process
from tests.flower.local_grid import LocalGrid

# starts processes that talk
pytestmark = pytest.mark.heavy

FAST = {**CONFIG, "deadline": 0.5}


def make(names: dict[int, str] | None = None, identity: str = "registered") -> tuple[Server, LocalGrid, Rounds]:
    server = open_server({**FAST, "plan": "blockzo.federated.flower.tiny:plan"})
    grid = LocalGrid({node: Client(tiny.worker({"partition-id": node})) for node in (0, 1)}, names)
    exchange = Exchange(grid, server.settings.run, Identities(identity), ttl=2.0)
    return server, grid, Rounds(server, exchange, 2)


def digest(server: Server) -> str:
    assert server.replica is not None
    return server.replica.digest()


@pytest.fixture(autouse=True)
def one_thread_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("blockzo.federated.flower.rounds.INTRODUCE_SECONDS", 0.3)


def test_one_message_a_round_and_all_weights_equal(expected: str) -> None:
    server, grid, rounds = make()
    rounds.run()
    assert digest(server) == expected
    # the introduction, then welcome and first task together, then one message a round
    kinds = [[m.kind_of(message) for message in asked] for node, asked in grid.pushed if node == 0]
    assert kinds == [[0], [m.WELCOME, m.STEP], *[[m.STEP]] * (CONFIG["rounds"] - 1)]
    peers = rounds.synchronize(5)
    assert {peer.about["digest"] for peer in peers.values()} == {expected} and sorted(peers) == ["client-0", "client-1"]


def test_who_was_not_asked_in_the_last_rounds_ends_with_the_same_weights(tmp_path: Path) -> None:
    """One of four is asked in a round; one has other weights."""
    plan = tiny.plan({**FAST, "rounds": 5})
    policy = RoundPolicy(clients=1, quorum=1, deadline=0.5)
    server = Server.create(tmp_path / "j", plan.settings, plan.base_digest, plan.layout, policy, plan.replica)
    grid = LocalGrid({node: Client(tiny.worker({"partition-id": node})) for node in range(4)})
    rounds = Rounds(server, Exchange(grid, server.settings.run, Identities("registered"), ttl=2.0), 4)
    rounds.run()
    held = {node: resident.client.position for node, resident in grid.residents.items()}
    assert sorted(held.values())[-2] < 5
    behind = min(held, key=lambda node: held[node])
    worker = grid.residents[behind].client.worker
    assert isinstance(worker, Worker)
    with torch.no_grad():
        next(worker.model.parameters()).view(-1)[0] += 1
    server.diverged.add(f"client-{behind}")
    peers = rounds.synchronize(30)
    assert {peer.about["digest"] for peer in peers.values()} == {digest(server)} and len(peers) == 4


def test_a_client_whose_last_answer_gets_lost_is_asked_again(expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockzo.federated.flower.rounds.AGAIN_SECONDS", 0.5)
    server, grid, rounds = make()
    rounds.run()
    # its first two answers at the end; the first of them would have been noticed after the time to live alone
    grid.silent.add(1)
    rounds.exchange.ttl = 60.0
    threading.Timer(0.8, grid.silent.clear).start()
    began = time.monotonic()
    peers = rounds.synchronize(30)
    assert time.monotonic() - began < 20
    assert {name: peer.about["digest"] for name, peer in peers.items()} == {"client-0": expected, "client-1": expected}


def test_scores_are_those_of_all_held_out_rows() -> None:
    server, grid, rounds = make()
    rounds.run()
    found = rounds.scores(5)
    each = []
    for node in (0, 1):
        each.append(tiny.worker({"partition-id": node}))
        each[-1].weights.replay(server.journal.records())
    losses = [worker.scores() for worker in each]
    assert found is not None and found[0] == 2 * tiny.ROWS
    assert found[1] == pytest.approx(sum(loss for _, loss, _ in losses) / 2)
    assert found[2] == pytest.approx(sum(right for _, _, right in losses) / 2)


def test_payload_is_four_bytes_a_scalar_and_64(expected: str) -> None:
    server, grid, rounds = make()
    rounds.run()
    sizes = [sum(map(len, asked)) for node, asked in grid.pushed if node == 0][2:]
    up = rounds.exchange.up["client-0"] - len(envelope.pack([grid.residents[0].client.hello()]))
    scalars = server.settings.scalars
    assert max(sizes) <= 4 * scalars + 64
    # an empty answer to the welcome, four bytes of length, comes with the first reply
    assert up <= CONFIG["rounds"] * (4 * scalars + 64) + 4


@pytest.mark.parametrize("how", ["silent", "failing", "offline"])
def test_a_node_that_is_away_is_waited_for(how: str, expected: str) -> None:
    server, grid, rounds = make()
    away: set[int] = getattr(grid, how)

    def leave(result: object) -> None:
        if server.number == 1:
            away.add(1)
            threading.Timer(1.2, away.clear).start()

    began = time.monotonic()
    rounds.run(leave)
    assert digest(server) == expected
    assert time.monotonic() - began > 1.0


def test_a_node_without_its_state_gets_all_records(expected: str) -> None:
    server, grid, rounds = make()

    def forget(result: object) -> None:
        if server.number == 2:
            grid.residents[1].client = Client(tiny.worker({"partition-id": 1}))

    rounds.run(forget)
    assert digest(server) == expected
    rounds.synchronize(5)
    assert grid.residents[1].client.worker.digest() == expected


def test_a_node_with_other_weights_is_repaired(expected: str) -> None:
    server, grid, rounds = make()

    def damage(result: object) -> None:
        if server.number == 1:
            worker = grid.residents[1].client.worker
            with torch.no_grad():
                next(worker.model.parameters()).add_(1)
            worker.weights._digest = None

    rounds.run(damage)
    assert server.refusals["client-1", m.DIVERGED] >= 1
    assert digest(server) == expected
    rounds.synchronize(5)
    assert grid.residents[1].client.worker.digest() == expected


def test_a_claimed_name_does_not_help(expected: str) -> None:
    server, grid, rounds = make({0: "client-0", 1: "client-1"})
    grid.residents[1].name = "client-0"
    rounds.run()
    assert digest(server) == expected
    server.close()


def test_the_first_who_reports_a_name_keeps_it(tmp_path: Path) -> None:
    server, grid, rounds = make(identity="reported")
    rounds._wait_for(lambda: len(rounds.exchange.joined()) == 2)
    grid.residents[7] = grid.residents[1]
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        rounds._step()
    assert rounds.exchange.joined()["client-1"].node == 1


def test_a_server_goes_on_from_its_journal(expected: str) -> None:
    server, grid, rounds = make()

    class Killed(Exception):
        pass

    def die(result: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        rounds.run(die)
    server.close()
    # the nodes stay, under other numbers
    again = open_server(FAST)
    assert again.number == 1
    grid.residents = {5: grid.residents[0], 6: grid.residents[1]}
    grid.names = {5: "client-0", 6: "client-1"}
    Rounds(again, Exchange(grid, again.settings.run, Identities(), ttl=2.0), 2).run()
    assert digest(again) == expected
    again.close()


def test_a_direction_an_example(tmp_path: Path) -> None:
    """Every node sends 32 examples' scalars along six directions in each of 3 local steps; the digest is that of one process."""
    config = {**FAST, "per-example": True, "run-name": "examples"}
    server = open_server(config)
    grid = LocalGrid({node: Client(tiny.worker({"partition-id": node})) for node in (0, 1)})
    Rounds(server, Exchange(grid, server.settings.run, Identities("registered"), ttl=2.0), 2).run()
    assert digest(server) == digest_in_process(tmp_path, config)
    server.close()
    with pytest.raises(ValueError, match="per_example 32, now None"):
        open_server({**config, "per-example": False})


def test_a_journal_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    open_server(FAST).close()
    with pytest.raises(ValueError, match="local_steps 3, now 5.*run-name"):
        open_server({**FAST, "local-steps": 5})
    with pytest.raises(ValueError, match="letters"):
        open_server({**FAST, "run-name": "../other"})


def test_an_owner_scores_the_servers_model_after_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """`server_app(hooks)` by what its main function runs; the metrics stand in the result and in the lines of the rounds."""
    ended: list[int] = []

    def evaluate(rounds: int, model: torch.nn.Module) -> dict[str, float]:
        return {"rounds": rounds, "weight": float(next(model.parameters()).detach().sum())}

    hooks = Hooks(evaluate, lambda result, metrics: ended.append(result.number), every=2)
    grid = LocalGrid({node: Client(tiny.worker({"partition-id": node})) for node in (0, 1)})
    config = {**FAST, "plan": "blockzo.federated.flower.tiny:plan", "identity": "registered", "rounds": 3}
    monkeypatch.setattr("blockzo.federated.flower.server_app.bound_waits", lambda: None)
    server_app.run(grid, config, hooks)
    folder = server_folder(config)
    result = json.loads((folder / "result.json").read_text())
    assert ended == [0, 1, 2] and [found["rounds"] for _, found in result["metrics"]] == [0, 2, 3]
    found = [
        json.loads(line).get("metrics", {}).get("rounds") for line in (folder / "rounds.jsonl").read_text().splitlines()
    ]
    assert found == [None, 2, 3]
