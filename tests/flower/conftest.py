"""One small run, and what it must end with: the digest of the same program in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo.federated.client import Client
from blockzo.federated.flower import tiny
from blockzo.federated.local import LocalTransport
from blockzo.federated.server import Server

APP = Path(__file__).parents[2] / "examples" / "flower"
RUN = "00112233445566778899aabbccddeeff"
CONFIG: dict[str, Any] = {"run": RUN, "clients": 2, "rounds": 3, "local-steps": 3, "deadline": 30.0}
RUN_CONFIG = [f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in CONFIG.items()]


def digest_in_process(folder: Path, config: dict[str, Any]) -> str:
    plan = tiny.plan(config)
    assert plan.replica is not None
    server = Server.create(folder / "journal", plan.settings, plan.base_digest, plan.layout, plan.policy, plan.replica)
    names = [f"client-{number}" for number in range(config["clients"])]
    clients = {name: Client(tiny.worker({"partition-id": number})) for number, name in enumerate(names)}
    transport = LocalTransport(server, clients)
    transport.join()
    while not server.finished:
        transport.round()
    server.close()
    return plan.replica.digest()


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return digest_in_process(tmp_path_factory.mktemp("in-process"), CONFIG)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """State and sockets of a test are its own."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("BLOCKZO_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BLOCKZO_RUNTIME", str(runtime))
    yield
