"""Secure sums over a Grid: four messages a node and round, and the bits of one process, whoever is away or restarted."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo.federated.client.client import Client
from blockzo.federated.flower import envelope, server_app, tiny
from blockzo.federated.flower.exchange import Exchange
from blockzo.federated.flower.identity import Identities
from blockzo.federated.flower.plan import open_server
from blockzo.federated.flower.rounds import Rounds
from blockzo.federated.protocol import messages as m
from blockzo.federated.server.hooks import Hooks
from blockzo.federated.server.server import Server
from blockzo.federated.signing import new_signers
from tests.flower.conftest import CONFIG, digest_in_process
from tests.flower.local_grid import LocalGrid

# starts processes that talk
pytestmark = pytest.mark.heavy

NODES = (0, 1, 2)
SECURE: dict[str, Any] = {
    **CONFIG,
    "clients": len(NODES),
    "deadline": 0.7,
    "secure-sum": True,
    "plan": "blockzo.federated.flower.tiny:plan",
}


SIGNERS = new_signers([f"client-{node}" for node in NODES])


def client(node: int) -> Client:
    return Client(tiny.worker({"partition-id": node}), signer=SIGNERS[f"client-{node}"])


def make() -> tuple[Server, LocalGrid, Rounds]:
    server = open_server(SECURE)
    grid = LocalGrid({node: client(node) for node in NODES})
    exchange = Exchange(grid, server.settings.run, Identities("registered"), ttl=2.0)
    return server, grid, Rounds(server, exchange, len(NODES))


@pytest.fixture(autouse=True)
def one_thread_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("blockzo.federated.flower.rounds.INTRODUCE_SECONDS", 0.3)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> str:
    return digest_in_process(tmp_path_factory.mktemp("secure"), SECURE)


def check(server: Server, grid: LocalGrid, rounds: Rounds, expected: str) -> None:
    assert server.replica is not None and server.replica.digest() == expected
    end = time.monotonic() + 60

    def held() -> set[str]:
        return {resident.client.worker.digest() for resident in grid.residents.values()}

    # a node that was away may not be known to be back yet
    while held() != {expected} and time.monotonic() < end:
        rounds.synchronize(5)
    assert held() == {expected}
    server.close()


def test_four_messages_a_round_and_the_digest_of_one_process(secure: str, expected: str) -> None:
    server, grid, rounds = make()
    rounds.run()
    kinds = [[m.kind_of(message) for message in asked] for node, asked in grid.pushed if node == 0]
    one = [[m.STEP], [m.SUM], [m.SUM], [m.SUM]]
    assert kinds == [[0], [m.WELCOME, m.STEP], *one[1:], *one * (CONFIG["rounds"] - 1)]
    assert not server.refusals and secure != expected
    count = server.settings.scalars
    up = rounds.exchange.up["client-0"] - len(envelope.pack([grid.residents[0].client.hello()])) - 4
    # docs/federated.md, "Bytes", and a length before each message
    assert up == CONFIG["rounds"] * (8 * count + 147 * len(NODES) + 352 + 4 * 4)
    check(server, grid, rounds, secure)


@pytest.mark.parametrize("phase", range(4))
def test_a_node_that_goes_away_in_a_phase_is_waited_for(phase: int, secure: str) -> None:
    server, grid, rounds = make()
    step, left = rounds._step, threading.Event()

    def watched() -> None:
        if server.number == 1 and server.phase == phase and not left.is_set():
            left.set()
            grid.silent.add(1)
            threading.Timer(1.5, grid.silent.clear).start()
        step()

    rounds._step = watched  # type: ignore[method-assign]
    rounds.run()
    assert left.is_set()
    check(server, grid, rounds, secure)


def test_a_worker_that_is_restarted_in_the_middle_of_a_sum_is_asked_anew(secure: str, tmp_path: Path) -> None:
    server, grid, rounds = make()
    step, killed = rounds._step, False

    def watched() -> None:
        nonlocal killed
        if server.number == 1 and server.phase == 2 and not killed:
            killed = True
            grid.residents[1].client = client(1)
        step()

    rounds._step = watched  # type: ignore[method-assign]
    rounds.run()
    assert killed and server.refusals["client-1", m.MISMATCH] + server.refusals["client-1", m.INVALID] >= 1
    check(server, grid, rounds, secure)


def test_scores_of_single_clients_are_not_asked_for(tmp_path: Path) -> None:
    server, grid, rounds = make()
    with pytest.raises(ValueError, match="evaluate-every is 2"):
        server_app._run(grid, {**SECURE, "evaluate-every": 2}, server, tmp_path, Hooks())
    server.close()
