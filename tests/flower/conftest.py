"""One small run, and what it must end with: the digest of the same program in one process."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo.federated.client.client import Client
from blockzo.federated.flower import tiny
from blockzo.federated.server.server import Server
from blockzo.federated.signing import new_signers
from blockzo.simulate.local import LocalTransport

# flwr of the supported versions needs Python 3.11
collect_ignore_glob = ["test_*.py"] if sys.version_info < (3, 11) else []
APP = Path(__file__).parents[2] / "examples" / "flower"
RUN = "00112233445566778899aabbccddeeff"
CONFIG: dict[str, Any] = {"run": RUN, "clients": 2, "rounds": 3, "local-steps": 3, "deadline": 30.0}


def flower_config(config: dict[str, Any]) -> list[str]:
    """The configuration as `flwr run` takes it."""
    return [f"{name}={json.dumps(value)}" for name, value in config.items()]


RUN_CONFIG = flower_config(CONFIG)


def digest_in_process(folder: Path, config: dict[str, Any], task: Any = tiny) -> str:
    """Digest of the weights after the run in one process, with one thread; `task` has the functions plan and worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(folder, config, task)
    finally:
        torch.set_num_threads(threads)


def _run(folder: Path, config: dict[str, Any], task: Any) -> str:
    plan = task.plan(config)
    assert plan.replica is not None
    server = Server.create(folder / "journal", plan.settings, plan.base_digest, plan.layout, plan.policy, plan.replica)
    names = [f"client-{number}" for number in range(config["clients"])]
    signers = new_signers(names) if plan.settings.signed_sum else {}
    clients = {}
    for number, name in enumerate(names):
        own = task.worker({**config, "partition-id": number, "num-partitions": len(names)})
        clients[name] = Client(own, signer=signers.get(name))
    transport = LocalTransport(server, clients)
    transport.join()
    while not server.finished:
        transport.round()
    server.close()
    digest: str = plan.replica.digest()
    return digest


def gone(pid: int, seconds: float = 20) -> bool:
    """Is the process gone, or a zombie that nobody waits for?"""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    return digest_in_process(tmp_path_factory.mktemp("in-process"), CONFIG)


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """State and sockets of a test are its own."""
    # a socket's path has at most 107 bytes, and tmp_path is long in the workers of pytest-xdist
    with tempfile.TemporaryDirectory(prefix="bz-", ignore_cleanup_errors=True) as runtime:
        monkeypatch.setenv("BLOCKZO_STATE", str(tmp_path / "state"))
        monkeypatch.setenv("BLOCKZO_RUNTIME", runtime)
        yield
