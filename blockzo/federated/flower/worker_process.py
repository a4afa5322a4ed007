"""The process that keeps model and data on a node between messages (started by `shim`).

It serves one socket, to its own user who knows its token, and ends with the node: when the process that started the first caller
(SuperExec, or Ray's raylet in a simulation) is gone, when it is idle for too long, or when the configuration changes.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import logging
import os
import secrets
import select
import socket
import struct
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockzo.federated.flower import envelope, named, wire
from blockzo.federated.flower.places import private_folder

if TYPE_CHECKING:
    from blockzo.federated.client.client import Client
    from blockzo.federated.client.policy import ClientPolicy

log = logging.getLogger("blockzo.federated")

ALREADY_RUNNING = 3
"""Exit status where another worker serves this client."""


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker is started with (JSON on its standard input).

    `owner`: process whose end is the worker's end; `digest`: of the configuration, hexadecimal; `journal`: of the client;
    `signing`: files of its signing key and roster and the least number of clients in a sum, where it has them.
    """

    sockets: str
    journal: str
    owner: int
    digest: str
    factory: str
    config: dict[str, Any]
    idle_seconds: float
    signing: tuple[str, str, int] | None = None


def watch(owner: int) -> None:
    """Ends this process when `owner` ends; at once on Linux, else within a second."""
    try:
        handle = os.pidfd_open(owner)
    except AttributeError:
        while True:
            os.kill(owner, 0)  # raises where it is gone
            time.sleep(1)
    select.select([handle], [], [])


def _follow(owner: int) -> None:
    try:
        watch(owner)
    except OSError:
        pass
    # the journal is written to disk before anything counts: nothing is lost
    os._exit(0)


def _only_one(folder: Path) -> int:
    """A lock for life; waits a little for a worker that is about to end."""
    file = os.open(folder / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(100):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            time.sleep(0.1)
    sys.exit(ALREADY_RUNNING)


def write_token(folder: Path) -> bytes:
    """A new secret in a file that the user alone can read."""
    token = secrets.token_bytes(wire.TOKEN_BYTES)
    path, new = folder / "token", folder / "token.new"
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(token)
    os.replace(new, path)
    return token


def same_user(connection: socket.socket) -> bool:
    """Does the other end belong to this user? The kernel says so on Linux; elsewhere folder and token must do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(user == os.getuid())


class Resident:
    """Answers requests with a client."""

    def __init__(self, client: Client, name: str, digest: bytes) -> None:
        self.client, self.name, self.digest = client, name, digest
        self.busy = 0.0
        self.handled = 0

    def about(self) -> bytes:
        facts = {
            "name": self.name,
            "position": self.client.position,
            "digest": self.client.worker.digest(),
            "busy_seconds": round(self.busy, 3),
            "handled": self.handled,
            "pid": os.getpid(),
        }
        return json.dumps(facts).encode("utf-8")

    def answer(self, data: bytes) -> bytes:
        """The client's answers to packed messages, after what it says about itself where it was asked to introduce itself."""
        began = time.perf_counter()
        about, answers = b"", []
        for message in envelope.unpack(data):
            self.handled += 1
            answers.append(self.client.handle(message) if message else self.client.hello())
            if not message:
                about = self.about()
        self.busy += time.perf_counter() - began
        return envelope.pack([about, *answers])

    def serve(self, connection: socket.socket, token: bytes) -> bool:
        """One request; False where this worker has to end."""
        connection.settimeout(30)
        given = wire.read_exactly(connection, wire.TOKEN_BYTES)
        if not hmac.compare_digest(given, token) or not same_user(connection):
            log.warning("refused a caller that does not know the token")
            wire.send_answer(connection, wire.REFUSED)
            return True
        digest, data = wire.read_request(connection)
        if digest != self.digest:
            wire.send_answer(connection, wire.RETIRED)
            return False
        try:
            result = self.answer(data)
        except Exception as error:  # a caller that waits must hear of it, whatever it is
            log.error("%s", traceback.format_exc())
            wire.send_answer(connection, wire.FAILED, f"{type(error).__name__}: {error}".encode())
            return True
        wire.send_answer(connection, wire.DONE, result)
        return True


def make_client(order: WorkerOrder) -> Client:
    import torch

    from blockzo.federated.client.client import Client

    torch.set_num_threads(int(order.config.get("threads", 1)))
    worker = named.load(order.factory, "factory")(dict(order.config))
    journal = Path(order.journal)
    private_folder(journal.parent)
    signer = None
    if order.signing is not None:
        from blockzo.federated.signing import Signer

        key, roster, least = order.signing
        signer = Signer.load(Path(key), Path(roster), least)
    folder, policy = (order.config.get(name) for name in ("snapshots", "policy"))
    return Client(
        worker,
        journal,
        signer,
        None if not folder else Path(str(folder)),
        None if not policy else ClientPolicy.load(Path(str(policy))),
    )


def run(order: WorkerOrder) -> None:
    folder = Path(order.sockets)
    threading.Thread(target=_follow, args=(order.owner,), daemon=True).start()
    alive = _only_one(folder)
    resident = Resident(make_client(order), str(order.config["name"]), bytes.fromhex(order.digest))
    path = folder / "socket"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        token = write_token(folder)
        server.bind(os.fspath(path))
        os.chmod(path, 0o600)
        server.listen(8)
        server.settimeout(order.idle_seconds)
        log.warning("worker %d serves %s", os.getpid(), resident.name)
        goes_on = True
        while goes_on:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                log.warning("idle for %g s: the worker ends", order.idle_seconds)
                break
            with connection:
                try:
                    goes_on = resident.serve(connection, token)
                except OSError as error:
                    log.warning("a caller went away: %s", error)
    path.unlink(missing_ok=True)
    resident.client.close()
    os.close(alive)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    run(WorkerOrder(**json.load(sys.stdin)))
