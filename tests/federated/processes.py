"""Server and clients as processes of their own, joined by a Unix socket, so that each can be killed at any moment.

python -m tests.federated.processes server FOLDER [secure] | client FOLDER NUMBER
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path

from blockzo.federated.client.client import Client
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.federated.server.server import Server
from blockzo.federated.signing import Signer
from tests.federated.problem import settings, worker

CLIENTS, ROUNDS = 3, 40


def send(end: socket.socket, data: bytes) -> None:
    end.sendall(struct.pack("<I", len(data)) + data)


def receive(end: socket.socket) -> bytes:
    def take(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = end.recv(count - len(data))
            if not part:
                raise ConnectionError("the other side is gone")
            data += part
        return data

    return take(struct.unpack("<I", take(4))[0])


def server(folder: Path, secure: bool) -> None:
    """Rounds of all clients; waits for those that are being restarted."""
    policy = RoundPolicy(quorum=CLIENTS, deadline=1e9, snapshot_every=6)
    replica = worker(99).weights
    path = folder / "server.bz"
    if path.exists():
        machine = Server.resume(path, policy, replica)
    else:
        base = worker(99)
        run = settings(rounds=ROUNDS, secure_sum=secure)
        machine = Server.create(path, run, base.base_digest, base.layout, policy, replica)
    gate = socket.socket(socket.AF_UNIX)
    address = folder / "gate"
    address.unlink(missing_ok=True)
    gate.bind(str(address))
    gate.listen()
    gate.settimeout(0.05)
    ends: dict[str, socket.socket] = {}

    def talk(name: str, message: bytes) -> None:
        try:
            while message:
                send(ends[name], message)
                answer = receive(ends[name])
                message = machine.receive(name, answer) if answer else b""
        except OSError:
            ends.pop(name, None)

    while not machine.finished:
        try:
            end, _ = gate.accept()
            end.settimeout(60)
            name = receive(end).decode()
            ends[name] = end
            talk(name, machine.receive(name, receive(end)))
        except OSError:
            pass
        if len(ends) < CLIENTS:
            continue
        messages = machine.open_round(list(ends), time.time())
        while messages:
            for name, message in messages.items():
                if name in ends:
                    talk(name, message)
            messages = machine.advance(time.time())
        if machine.ready(time.time()):
            machine.close_round()
    for name, message in machine.bring_up_to_date(ends).items():
        talk(name, message)
    (folder / "server.done").write_text(replica.digest())
    for end in ends.values():
        send(end, b"")


def client(folder: Path, number: int) -> None:
    roster = folder / "roster"
    signer = Signer.load(folder / f"c{number}.signing", roster) if roster.exists() else None
    machine = Client(worker(number), folder / f"c{number}.bz", signer, folder)
    while True:
        try:
            end = socket.socket(socket.AF_UNIX)
            end.connect(str(folder / "gate"))
            send(end, f"c{number}".encode())
            send(end, machine.hello())
            while message := receive(end):
                send(end, machine.handle(message))
            break
        except OSError:
            time.sleep(0.05)
            if (folder / "server.done").exists():
                break
    (folder / f"c{number}.done").write_text(f"{machine.position} {machine.worker.digest()}")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        server(Path(sys.argv[2]), sys.argv[3:] == ["secure"])
    else:
        client(Path(sys.argv[2]), int(sys.argv[3]))
