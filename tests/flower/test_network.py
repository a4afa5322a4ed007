"""A deployment over network namespaces: hosts that reach one another through a bad network only, and that die."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import namespaces
from benchmarks.flower_network import BAD, measure
from benchmarks.namespaces import Network, Weather
from tests.flower.conftest import RUN, digest_in_process

# links that delay and stall, with deadlines
pytestmark = pytest.mark.apart


@pytest.fixture(autouse=True)
def can_be() -> None:
    reason = namespaces.usable()
    if reason:
        pytest.skip(reason)


def check(found: dict[str, Any], tmp_path: Path, config: dict[str, Any]) -> None:
    expected = digest_in_process(tmp_path, {**config, "clients": 3})
    assert {found["digest"], *found["clients"].values()} == {expected} and len(found["clients"]) == 3
    # every round once, in order, with everyone in it
    assert found["lines"] == [(number, 3) for number in range(config["rounds"])]
    assert found["resets"] > 0
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert found["namespaces"] not in left


@pytest.mark.timeout(600)
def test_rounds_over_links_with_delay_stalls_and_resets(tmp_path: Path) -> None:
    config = {"run": RUN, "rounds": 4, "local-steps": 3}
    weather = Weather(delay=0.05, stall=0.02, stalled=1.0, reset_every=10.0)
    found = measure(tmp_path / "hosts", 4, 3, weather, bad_days=False, config=config, seconds=400)
    check(found, tmp_path, config)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_rounds_while_links_go_down_and_hosts_die(tmp_path: Path) -> None:
    config = {"run": RUN, "rounds": 50, "local-steps": 4}
    found = measure(tmp_path / "hosts", 50, 4, BAD, config=config, seconds=3500)
    assert len(found["happened"]) == 4
    check(found, tmp_path, config)


def ask(network: Network, name: str, seconds: float = 5) -> str:
    """What a host gets from the server's port over its link: a line; or the name of the error."""
    host = network.hosts[name]
    code = (
        "import socket\n"
        f"try:\n s = socket.create_connection(('{host.gateway}', {network.port}), {seconds}); s.settimeout({seconds})\n"
        " print(s.recv(9).decode())\n"
        "except OSError as error:\n print(type(error).__name__)"
    )
    return subprocess.run(
        host.inside(sys.executable, "-c", code), capture_output=True, text=True, check=True
    ).stdout.strip()


SERVE = """
import socket
server = socket.create_server(("0.0.0.0", 7000))
while True:
    caller, _ = server.accept()
    caller.sendall(b"hello")
    caller.close()
"""


def test_links_and_hosts_do_what_they_are_told(tmp_path: Path) -> None:
    with Network(["server", "n0"], 7000) as network:
        server = network.server
        server.commands = [([sys.executable, "-c", SERVE], dict(os.environ), tmp_path / "log")]
        server.boot()
        while ask(network, "n0") != "hello":
            pass
        # nothing goes round the proxy
        code = f"import socket; socket.create_connection(('{server.address}', 7000), 1)"
        assert subprocess.run(network.hosts["n0"].inside(sys.executable, "-c", code), capture_output=True).returncode
        network.hosts["n0"].link(False)
        assert ask(network, "n0", 0.5) in ("TimeoutError", "OSError")
        network.hosts["n0"].link(True)
        assert server.die() == 1
        server.connect()
        assert ask(network, "n0") != "hello"
        server.boot()
        while ask(network, "n0") != "hello":
            pass
        assert network.hosts["n0"].up == 0 and network.hosts["n0"].down >= 10
        names = network.prefix
    assert names not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
