"""Engine overhead and bytes on the wire of a Flower deployment with TLS and registered keys on this machine (docs/flower.md).

    python benchmarks/flower_deployment.py --nodes 2 --local-steps 20

Nodes reach the SuperLink through a relay that counts bytes. Two runs of different length on one deployment: their difference is
the cost of a round, without start-up. Overhead of the engine = time of a round less the work of the slowest client in it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from blockzo.federated.flower.loopback import Deployment

APP = Path(__file__).parents[1] / "examples" / "flower"


class Relay:
    """Passes connections to a port of this machine. `up`, `down`: bytes from and to those who connect, TLS and HTTP included."""

    def __init__(self) -> None:
        self.target = 0
        self.up = self.down = 0
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def counts(self) -> tuple[int, int]:
        with self._lock:
            return self.up, self.down

    def _accept(self) -> None:
        while True:
            caller, _ = self._server.accept()
            try:
                target = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                caller.close()
                continue
            threading.Thread(target=self._pass, args=(caller, target, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(target, caller, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    if up:
                        self.up += len(data)
                    else:
                        self.down += len(data)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


def measure(deployment: Deployment, relay: Relay, name: str, rounds: int, local_steps: int) -> dict[str, Any]:
    before = relay.counts()
    began = time.monotonic()
    settings = [f"rounds={rounds}", f"local-steps={local_steps}", "deadline=60.0"]
    result = deployment.run(APP, name, settings, 600)
    after = relay.counts()
    busy = max(client["busy_seconds"] for client in result["clients"].values())
    ends = result["round_end_seconds"]
    digests = {result["digest"], *(client["digest"] for client in result["clients"].values())}
    assert len(digests) == 1, digests
    return {
        "rounds": rounds,
        "seconds": time.monotonic() - began,
        "round_seconds": (ends[-1] - ends[0]) / (rounds - 1),
        "busy_seconds": busy / rounds,
        "payload_up": sum(result["payload_up"].values()),
        "payload_down": sum(result["payload_down"].values()),
        "wire_up": after[0] - before[0],
        "wire_down": after[1] - before[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--local-steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, nargs=2, default=(4, 14))
    given = parser.parse_args()
    relay = Relay()
    with tempfile.TemporaryDirectory(prefix="blockzo-") as folder:
        deployment = Deployment(Path(folder), given.nodes, relay.port)
        relay.target = deployment.port
        with deployment:
            short = measure(deployment, relay, "short", given.rounds[0], given.local_steps)
            long = measure(deployment, relay, "long", given.rounds[1], given.local_steps)
    per = (long["rounds"] - short["rounds"]) * given.nodes
    rest = long["round_seconds"] - long["busy_seconds"]
    result = {
        "nodes": given.nodes,
        "local_steps": given.local_steps,
        "load": os.getloadavg(),
        "round_seconds": long["round_seconds"],
        "client_work_seconds_per_round": long["busy_seconds"],
        "engine_seconds_per_step": rest / given.local_steps,
        **{
            f"{what}_bytes_per_client_and_round": (long[what] - short[what]) / per
            for what in ("payload_up", "payload_down", "wire_up", "wire_down")
        },
    }
    print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in result.items()}, indent=1))


if __name__ == "__main__":
    main()
