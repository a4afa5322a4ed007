"""Passes messages to the worker of a client, and starts it where it does not run. Imports no torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blockzo.federated.flower import envelope, wire
from blockzo.federated.flower.places import checked_name, private_folder, socket_folder, state_root
from blockzo.federated.flower.worker_process import ALREADY_RUNNING, WorkerOrder

FACTORY = "blockzo.federated.flower.tiny:worker"


class WorkerError(RuntimeError):
    """The worker cannot be started or cannot answer; the text says why."""


def client_name(node: Mapping[str, Any]) -> str:
    """A node's own name: "name" of its node configuration, else client-<partition-id>."""
    return checked_name(str(node.get("name") or f"client-{node.get('partition-id', 0)}"))


def signing_files(node: Mapping[str, Any], state: Path) -> tuple[str, str, int] | None:
    """Signing key, roster and least number of clients in a secure sum: of the node's own configuration, never the run's.

    Else "signing-key" and "roster" in the client's state folder, where they are there.
    """
    key, roster = (str(node.get(name) or state / name) for name in ("signing-key", "roster"))
    if not node.get("signing-key") and not os.path.exists(key):
        return None
    return os.path.abspath(key), os.path.abspath(roster), int(node.get("least-clients", 2))


def config_digest(factory: str, config: Mapping[str, Any], run: str, signing: object = None) -> bytes:
    text = json.dumps([factory, dict(config), run, sys.path, signing], sort_keys=True)
    return hashlib.blake2s(text.encode("utf-8"), digest_size=wire.DIGEST_BYTES, person=b"bz-cfg").digest()


OWNERS = ("snapshots", "policy")
"""What the owner of a node alone says: which folder a server's word may lead to, and which runs the client takes part in."""


class Shim:
    """The way to one client's worker.

    Args:
        node: the node's configuration: "name" or "partition-id", "state" (folder), and what the factory reads.
        run_config: the run's; what the node says goes before it.
        run: names the federated run; its journal lies in a folder of this name.
        owner: process whose end is the worker's end; the parent of this one where None.
    """

    def __init__(
        self, node: Mapping[str, Any], run_config: Mapping[str, Any], run: str, owner: int | None = None
    ) -> None:
        name = client_name(node)
        config = {**{key: value for key, value in run_config.items() if key not in OWNERS}, **node, "name": name}
        state = private_folder(private_folder(state_root(node.get("state"))) / name)
        self.folder = socket_folder(state)
        self.state = state
        factory = str(config.get("factory") or FACTORY)
        signing = signing_files(node, state)
        self._order = WorkerOrder(
            os.fspath(self.folder),
            os.fspath(state / checked_name(run) / "journal"),
            os.getppid() if owner is None else owner,
            config_digest(factory, config, run, signing).hex(),
            factory,
            config,
            float(config.get("idle-seconds", 900)),
            signing,
        )
        self._start_seconds = float(config.get("start-seconds", 300))
        self._answer_seconds = float(config.get("answer-seconds", 3600))

    def ask(self, messages: list[bytes]) -> tuple[bytes, list[bytes]]:
        """What the worker says about itself (empty unless it was asked to introduce itself), and its answers.

        Raises:
            WorkerError: no worker, or it failed.
        """
        # a worker may end between two calls: its node was restarted, or the configuration is another one
        for _ in range(5):
            connection = self._connect() or self._started()
            with connection:
                try:
                    status, data = self._talk(connection, envelope.pack(messages))
                except (ConnectionError, FileNotFoundError):
                    time.sleep(0.2)
                    continue
            if status == wire.DONE:
                about, *answers = envelope.unpack(data)
                return about, answers
            if status == wire.FAILED:
                raise WorkerError(data.decode("utf-8", "replace"))
            # its successor has a token of its own
            time.sleep(0.2)
        raise WorkerError(f"the worker ended again and again while it was asked; see {self.state / 'worker.log'}")

    def _talk(self, connection: socket.socket, data: bytes) -> tuple[int, bytes]:
        connection.settimeout(self._answer_seconds)
        token = (self.folder / "token").read_bytes()
        wire.send_request(connection, token, bytes.fromhex(self._order.digest), data)
        return wire.read_answer(connection)

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(self.folder / "socket"))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Held by the one caller that starts the worker; others wait for it."""
        file = os.open(self.folder / "starting", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _started(self) -> socket.socket:
        log = self.state / "worker.log"
        with self._starting():
            end = time.monotonic() + self._start_seconds
            process: subprocess.Popen[bytes] | None = None
            while time.monotonic() < end:
                connection = self._connect()
                if connection is not None:
                    return connection
                if process is None or process.poll() == ALREADY_RUNNING:
                    process = self._launch(log)
                elif process.poll() is not None:
                    raise WorkerError(
                        f"the worker ended with status {process.returncode}; {log} ends with: {_tail(log)}"
                    )
                time.sleep(0.02)
            if process is not None:
                process.kill()
        raise WorkerError(
            f"the worker did not start within {self._start_seconds:g} s; see {log} (setting start-seconds)"
        )

    def _launch(self, log: Path) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            # the app's own modules, which Flower put on the path of this process
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "blockzo.federated.flower.worker_process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(self._order)).encode("utf-8"))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended already: its status says so
        return process


def _tail(log: Path) -> str:
    try:
        return " / ".join(log.read_text("utf-8", "replace").splitlines()[-3:])
    except OSError as error:
        return str(error)
