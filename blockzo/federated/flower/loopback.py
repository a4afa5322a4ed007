"""A whole deployment on one machine: certificates, SuperLink with TLS, nodes with registered keys, one run, then its end.

    python -m blockzo.federated.flower.loopback examples/flower --nodes 2

Repeated with the same --folder and --run-name it goes on where it was stopped or killed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from blockzo.federated.flower.certificates import node_files, server_files
from blockzo.federated.flower.submit import Submission, flwr
from blockzo.federated.flower.supervise import Supervised
from blockzo.federated.signing import make_key, make_roster

log = logging.getLogger("blockzo.federated")

OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # else Flower fetches what the app names, torch included
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # seconds between two looks for a new message, on SuperLink and nodes; Flower's own is 1
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
    "OMP_WAIT_POLICY": "PASSIVE",
}
CONNECTION = "loopback"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_port(port: int, seconds: float) -> None:
    """Returns when someone listens on a port of this machine; TimeoutError after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nobody listens on port {port} after {seconds:g} s")


class Deployment:
    """SuperLink and nodes under `folder`; a context that starts and ends them.

    Args:
        nodes: how many; node i is client-<i> with partition-id i.
        relay_port: port that the nodes use instead of the SuperLink's own, of a relay that counts bytes.

    Attributes: `superlink`, `nodes` (Supervised), `port`.
    """

    def __init__(self, folder: Path, nodes: int, relay_port: int | None = None) -> None:
        self.folder = folder.absolute()
        self.names = [f"client-{number}" for number in range(nodes)]
        self.port = self._port("superlink")
        self.files = server_files(self.folder / "keys")
        self.home = self.folder / "flwr"
        self.home.mkdir(exist_ok=True)
        self._write_config()
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
        self.environment = {**os.environ, **OFFLINE, "FLWR_HOME": os.fspath(self.home), "PATH": path}
        # every node knows all keys of clients; on several hosts their owners exchange them (docs/privacy.md)
        make_roster(self.folder / "keys" / "roster", [make_key(self.folder / "keys", name) for name in self.names])
        self.superlink = self._superlink()
        self.nodes = {name: self._node(number, name, relay_port) for number, name in enumerate(self.names)}

    def _port(self, name: str) -> int:
        """The same in every start, so that a command that was left running is known again."""
        file = self.folder / f"{name}.port"
        if not file.exists():
            file.write_text(str(free_port()))
        return int(file.read_text())

    def _write_config(self) -> None:
        text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "127.0.0.1:{self.port}"\n'
        (self.home / "config.toml").write_text(text + f'root-certificates = "{self.files.authority}"\n')

    def _superlink(self) -> Supervised:
        authority, certificate, key = map(os.fspath, (self.files.authority, self.files.certificate, self.files.key))
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ssl-ca-certfile", authority, "--ssl-certfile", certificate, "--ssl-keyfile", key]
        command += ["--enable-supernode-auth", "--database", os.fspath(self.folder / "superlink.db")]
        environment = {**self.environment, "BLOCKZO_STATE": os.fspath(self.folder / "server")}
        return Supervised(command, environment, self.folder / "superlink.log")

    def _node(self, number: int, name: str, relay_port: int | None) -> Supervised:
        keys = node_files(self.folder / "keys", name)
        signing = self.folder / "keys" / f"{name}.signing"
        # what names a node, its data and its state is the node's own, never the server's
        config = f'name="{name}" partition-id={number} num-partitions={len(self.names)} state="{self.folder / "nodes"}"'
        config += f' signing-key="{signing}" roster="{self.folder / "keys" / "roster"}"'
        command = [
            "flower-supernode",
            "--superlink",
            f"127.0.0.1:{relay_port or self.port}",
            "--port",
            str(self._port(name)),
        ]
        command += ["--root-certificates", os.fspath(self.files.authority), "--node-config", config]
        command += ["--auth-supernode-private-key", os.fspath(keys.private)]
        return Supervised(command, self.environment, self.folder / f"{name}.log")

    def __enter__(self) -> Deployment:
        self.superlink.start()
        try:
            self._register()
            for node in self.nodes.values():
                node.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def stop(self) -> None:
        for supervised in (*self.nodes.values(), self.superlink):
            if supervised.starts:
                supervised.stop()

    def wait_until_up(self, seconds: float = 60) -> None:
        try:
            wait_for_port(self.port, seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; see {self.folder / 'superlink.log'}") from None

    def _register(self) -> None:
        """Makes the nodes' public keys known, once: they lie in the SuperLink's database."""
        self.wait_until_up()
        for name in self.names:
            mark = self.folder / "keys" / f"{name}.registered"
            if mark.exists():
                continue
            public = os.fspath(node_files(self.folder / "keys", name).public)
            found = flwr("supernode", "register", public, CONNECTION, "--name", name, environment=self.environment)
            if found.returncode and "already" not in found.stdout + found.stderr:
                raise RuntimeError(f"{name} could not be registered: {(found.stdout + found.stderr).strip()[-500:]}")
            mark.touch()

    def run(self, app: Path, run_name: str, run_config: list[str], seconds: float) -> dict[str, Any]:
        """Runs the app to its end, submitting it again when SuperLink or ServerApp died; what the server wrote as result.

        Raises:
            TimeoutError: no result within so many seconds.
        """
        config = [f"clients={len(self.nodes)}", *run_config]
        state = self.folder / "server"
        submission = Submission(app, CONNECTION, run_name, config, state, self.environment)
        try:
            return submission.result(seconds, lambda: self.superlink.starts)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; see superlink.log and client-*.log in {self.folder}") from None


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the deployment on the way out."""
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a Flower app on a deployment on this machine.")
    parser.add_argument("app", type=Path, help="folder of the app, for example examples/flower")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps keys, state and logs, so that a run can be resumed")
    parser.add_argument("--run-name", default="demo")
    parser.add_argument("--run-config", action="append", default=[], metavar="'KEY=VALUE ...'")
    parser.add_argument("--seconds", type=float, default=3600)
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="blockzo-"))
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with Deployment(folder, given.nodes) as deployment:
            print(json.dumps(deployment.run(given.app, given.run_name, given.run_config, given.seconds), indent=1))
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
