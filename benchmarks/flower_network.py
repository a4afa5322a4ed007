"""A Flower deployment on several hosts, with a bad network between them: one digest, no lost round, and what it costs.

    python benchmarks/flower_network.py --rounds 50

Every host is a Linux network namespace of this machine (namespaces.py; root and iproute2): a SuperLink with TLS and node
authentication, and nodes with keys of their own, started by the commands that docs/flower.md gives for several hosts. All
connections have a delay each way, stalls, and resets now and then; with 20 rounds or more, a node's link is down for a minute, a
node's host dies and comes back, and so does the server's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.namespaces import Host, Network, Weather, environment_of
from blockzo.federated.flower.certificates import node_files, server_files
from blockzo.federated.flower.loopback import OFFLINE
from blockzo.federated.flower.plan import server_folder
from blockzo.federated.flower.submit import flwr

APP = Path(__file__).parents[1] / "examples" / "flower"
SITE = "site"
BAD = Weather(delay=0.05, stall=0.02, stalled=2.0, reset_every=30.0)

log = logging.getLogger("flower_network")


class Hosts:
    """The deployment: host "server", and nodes "n0", "n1", ... as clients client-0, client-1, ...

    Args:
        folder: every host has a folder of its own in it.
    """

    def __init__(self, folder: Path, nodes: int, port: int = 9443) -> None:
        self.folder = folder.absolute()
        self._sockets = tempfile.TemporaryDirectory(prefix="bz")
        self.network = Network(["server", *(f"n{number}" for number in range(nodes))], port)
        hosts = self.network.hosts
        self.server, self.nodes = hosts["server"], [hosts[f"n{number}"] for number in range(nodes)]
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
        self._base = {**os.environ, **OFFLINE, "PATH": path}
        names = [self.server.address, *(node.gateway for node in self.nodes)]
        self._files = server_files(self.folder / "server" / "keys", names)
        for number, node in enumerate(self.nodes):
            self._prepare_node(number, node)

    def _environment(self, host: Host) -> dict[str, str]:
        home = self.folder / host.name / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        own = environment_of(self._base, self.folder / host.name, Path(self._sockets.name) / host.name)
        return {**own, "FLWR_HOME": os.fspath(home)}

    def _supervised(self, *command: str) -> list[str]:
        return [sys.executable, "-m", "blockzo.federated.flower.supervise", *command]

    def _prepare_node(self, number: int, node: Host) -> None:
        folder = self.folder / node.name
        keys = node_files(folder / "keys", f"client-{number}")
        state = folder / "state"
        config = f'name="client-{number}" partition-id={number} num-partitions={len(self.nodes)} state="{state}"'
        command = self._supervised("flower-supernode", "--superlink", f"{node.gateway}:{self.network.port}")
        command += ["--root-certificates", os.fspath(self._files.authority), "--node-config", config]
        command += ["--auth-supernode-private-key", os.fspath(keys.private)]
        node.commands = [(command, self._environment(node), folder / "supernode.log")]

    def start(self) -> None:
        """SuperLink, registration of the nodes' keys, nodes; not yet the run."""
        where = self.folder / "server"
        files, environment = self._files, self._environment(self.server)
        text = f'[superlink.{SITE}]\naddress = "{self.server.address}:{self.network.port}"\n'
        (where / "flwr" / "config.toml").write_text(text + f'root-certificates = "{files.authority}"\n')
        command = self._supervised("flower-superlink", "--host", "0.0.0.0", "--port", str(self.network.port))
        command += ["--ssl-ca-certfile", os.fspath(files.authority), "--ssl-certfile", os.fspath(files.certificate)]
        command += ["--ssl-keyfile", os.fspath(files.key), "--enable-supernode-auth"]
        command += ["--database", os.fspath(where / "superlink.db")]
        self.server.commands = [(command, environment, where / "superlink.log")]
        self.server.boot()
        for number in range(len(self.nodes)):
            self._register(number, environment)
        for node in self.nodes:
            node.boot()

    def _register(self, number: int, environment: dict[str, str], seconds: float = 90) -> None:
        public = node_files(self.folder / f"n{number}" / "keys", f"client-{number}").public
        end = time.monotonic() + seconds
        while True:
            prefix = self.server.inside()
            command = ("supernode", "register", os.fspath(public), SITE, "--name", f"client-{number}")
            found = flwr(*command, environment=environment, prefix=prefix)
            if not found.returncode:
                return
            if time.monotonic() > end:
                raise RuntimeError(f"client-{number} was not registered: {(found.stdout + found.stderr)[-500:]}")
            time.sleep(0.5)

    def submit(self, run_name: str, run_config: list[str]) -> None:
        """The run, as a command of the server's host that is started again with it."""
        command = [sys.executable, "-m", "blockzo.federated.flower.submit", os.fspath(APP), SITE]
        command += ["--run-name", run_name]
        for setting in (f"clients={len(self.nodes)}", *run_config):
            command += ["--run-config", setting]
        environment, output = self._environment(self.server), self.folder / "server" / "submit.log"
        again = list(self.server.commands)
        self.server.commands = [(command, environment, output)]
        self.server.boot()
        self.server.commands += again

    def run_folder(self, run_name: str) -> Path:
        return server_folder({"server-state": os.fspath(self.folder / "server" / "state"), "run-name": run_name})


class Calamities(threading.Thread):
    """Does what it is told when the run has so many rounds behind it."""

    def __init__(self, rounds: Path, plan: list[tuple[int, str, Callable[[], None]]]) -> None:
        super().__init__(daemon=True)
        self.rounds, self.plan, self.happened = rounds, sorted(plan, key=lambda one: one[0]), []
        self.over = threading.Event()
        self.error: BaseException | None = None

    def done(self) -> int:
        return len(self.rounds.read_bytes().splitlines()) if self.rounds.exists() else 0

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def _run(self) -> None:
        for after, what, act in self.plan:
            while self.done() < after:
                if self.over.wait(0.2):
                    return
            log.warning("after %d rounds: %s", self.done(), what)
            act()
            log.warning("it is over: %s", what)
            self.happened.append(what)


def power_failure(host: Host, seconds: float) -> None:
    host.die()
    time.sleep(seconds)
    host.connect()
    host.boot()


def link_down(host: Host, seconds: float) -> None:
    host.link(False)
    time.sleep(seconds)
    host.link(True)


def calamities(hosts: Hosts, rounds: int) -> list[tuple[int, str, Callable[[], None]]]:
    nodes, server = hosts.nodes, hosts.server
    return [
        (rounds // 8, "the link of n0 is down for 60 s", lambda: link_down(nodes[0], 60)),
        (3 * rounds // 8, "the host of n1 dies and is back after 20 s", lambda: power_failure(nodes[1], 20)),
        (5 * rounds // 8, "the host of the server dies and is back after 10 s", lambda: power_failure(server, 10)),
        (
            7 * rounds // 8,
            "the hosts of n0 and n2 die, one after the other",
            lambda: [power_failure(n, 5) for n in (nodes[0], nodes[2])],
        ),
    ]


def measure(
    folder: Path,
    rounds: int,
    local_steps: int,
    weather: Weather = BAD,
    nodes: int = 3,
    bad_days: bool = True,
    config: dict[str, Any] | None = None,
    seconds: float = 3600,
) -> dict[str, Any]:
    """Runs the example app; the server's result, with what the network did and what it cost.

    Raises:
        TimeoutError: no result in time.
    """
    hosts = Hosts(folder, nodes)
    settings = {"rounds": rounds, "local-steps": local_steps, "deadline": 30.0, **(config or {})}
    with hosts.network as network:
        hosts.start()
        began = time.monotonic()
        # the bad weather begins when everybody is known
        network.weather(weather)
        hosts.submit("network", [f"{name}={json.dumps(value)}" for name, value in settings.items()])
        place = hosts.run_folder("network")
        watcher = Calamities(place / "rounds.jsonl", calamities(hosts, rounds) if bad_days else [])
        watcher.start()
        try:
            while not (place / "result.json").exists():
                if watcher.error is not None:
                    raise watcher.error
                if time.monotonic() - began > seconds:
                    raise TimeoutError(f"no result within {seconds:g} s after {watcher.done()} rounds")
                if not bad_days and watcher.done() and not sum(node.resets for node in hosts.nodes):
                    # a short run may be over before chance has reset anything
                    network.reset(hosts.nodes[0].name)
                time.sleep(0.2)
        finally:
            watcher.over.set()
        result: dict[str, Any] = json.loads((place / "result.json").read_text())
        took = time.monotonic() - began
        lines = [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()]
        clients = {name: client["digest"] for name, client in result["clients"].items()}
        return {
            "rounds": result["rounds"],
            "lines": [(line["round"], len(line["participants"])) for line in lines],
            "digest": result["digest"],
            "clients": clients,
            "happened": watcher.happened,
            "seconds": round(took, 1),
            "attempts": sum(line["attempt"] + 1 for line in lines),
            "resets": sum(node.resets for node in hosts.nodes),
            "bytes_up": sum(node.up for node in hosts.nodes),
            "bytes_down": sum(node.down for node in hosts.nodes),
            "namespaces": network.prefix,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--local-steps", type=int, default=4)
    parser.add_argument("--calm", action="store_true", help="nobody dies and no link goes down")
    parser.add_argument("--delay", type=float, default=BAD.delay, help="seconds each way")
    parser.add_argument("--stall", type=float, default=BAD.stall, help="chance of a piece of data")
    parser.add_argument("--reset-every", type=float, default=BAD.reset_every, help="seconds; 0: never")
    parser.add_argument(
        "--run", default="", help="32 hexadecimal digits, of which the digest is a function; else made up"
    )
    parser.add_argument("--folder", type=Path, help="keeps keys, state and logs")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    # namespaces and what runs in them are taken away then too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    weather = Weather(given.delay, given.stall, BAD.stalled, given.reset_every)
    with tempfile.TemporaryDirectory(prefix="blockzo-") as folder:
        found = measure(
            given.folder or Path(folder),
            given.rounds,
            given.local_steps,
            weather,
            given.nodes,
            not given.calm,
            {"run": given.run},
        )
    per = found["rounds"] * given.nodes
    assert {found["digest"]} == set(found["clients"].values()), found
    assert [number for number, _ in found["lines"]] == list(range(given.rounds)), found["lines"]
    found["bytes_up_per_client_and_round"] = round(found["bytes_up"] / per)
    found["bytes_down_per_client_and_round"] = round(found["bytes_down"] / per)
    del found["lines"], found["namespaces"]
    print(json.dumps({"load": os.getloadavg(), **found}, indent=1))


if __name__ == "__main__":
    main()
