"""A small task for rounds: a two-layer network learns from another one; every client draws its rows from its own number."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import blockzo as bz
from blockzo.federated.client.client import Client
from blockzo.federated.client.worker import Weights, Worker, directions_of
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.federated.server.server import Server
from blockzo.federated.signing import new_signers
from blockzo.methods.base import Method
from blockzo.simulate.local import LocalTransport

RUN = "00112233445566778899aabbccddeeff"
ROWS = 8


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 33), torch.nn.Tanh(), torch.nn.Linear(33, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.to(dtype)


def teacher_labels(x: torch.Tensor) -> torch.Tensor:
    return (x @ torch.linspace(-1, 1, 24).view(8, 3).roll(1, 0)).argmax(1)


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, labels = batch
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), labels)


def worker(number: int, dtype: torch.dtype = torch.float32, weights: Weights | None = None) -> Worker:
    weights = weights or Weights(bz.Blocks(network(dtype), [1]))

    def batch_of(round_number: int, step: int) -> tuple[Any, int]:
        generator = torch.Generator().manual_seed(1_000_003 * number + 101 * round_number + step)
        x = torch.randn(ROWS + number, 8, generator=generator)
        return (x, teacher_labels(x)), len(x)

    def held_out() -> tuple[int, float, float]:
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            logits = weights.blocks.model(x.to(dtype)).float()
        labels = teacher_labels(x)
        return 64, float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())

    return Worker(weights, batch_of, loss, held_out, max_group=1)


def settings(method: Method | None = None, **given: Any) -> RunSettings:
    method = method or bz.SPZO(1, 3)
    values: dict[str, Any] = {"rounds": 12, "lr": (0.05, 0.05), "eps": (1e-2, 1e-2), **given}
    return RunSettings(RUN, method.describe(), directions_of(method, 2), **values)


def weights_of(client: Client | Worker) -> dict[str, torch.Tensor]:
    held = client.worker if isinstance(client, Client) else client
    return {name: p.detach().clone() for name, p in held.model.named_parameters()}  # type: ignore[attr-defined]


def spoil(client: Client) -> None:
    """Changes one of its weights behind its back."""
    with torch.no_grad():
        next(client.worker.model.parameters()).view(-1)[0] += 1.0  # type: ignore[attr-defined]
    client.worker.weights._digest = None  # type: ignore[attr-defined]


class Federation:
    """A server with a replica (or none) and clients, in one process, with journals in `folder`."""

    def __init__(
        self,
        folder: Path,
        clients: int = 4,
        chosen: RunSettings | None = None,
        policy: RoundPolicy | None = None,
        replica: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder, self.policy, self.dtype = folder, policy, dtype
        self.settings = chosen or settings()
        self.replica = worker(99, dtype).weights if replica else None
        base = copy.deepcopy(worker(99, dtype))
        self.server = Server.create(
            folder / "server.bz", self.settings, base.base_digest, base.layout, policy, self.replica
        )
        names = [f"c{i}" for i in range(clients)]
        self.signers = new_signers(names) if self.settings.signed_sum else {}
        self.clients = {
            name: Client(worker(i, dtype), folder / f"{name}.bz", self.signers.get(name), folder)
            for i, name in enumerate(names)
        }
        self.transport = LocalTransport(self.server, self.clients)
        self.transport.join()

    def live_through(self, chance: random.Random, rounds: int, lost: float, there: float) -> None:
        """Rounds until the run is finished, at most so many, while answers come late, and clients and the server are killed.

        Args:
            lost: share of answers that come late or never. there: share of rounds in which client c4 takes part.
        """
        late: list[tuple[str, bytes]] = []

        def deliver(name: str, answer: bytes) -> bytes | None:
            if chance.random() < lost:
                late.append((name, answer))
                return None
            return answer

        for _ in range(rounds):
            if self.server.finished:
                break
            if chance.random() < 0.3:
                self.restart_client(chance.choice(sorted(self.clients)))
            if chance.random() < 0.2:
                self.restart_server()
            while late and chance.random() < 0.7:
                self.server.receive(*late.pop())
            here = [name for name in self.clients if name != "c4" or chance.random() < there]
            self.transport.round(here, deliver=deliver)

    def restart_server(self) -> None:
        self.server.close()
        self.replica = worker(99, self.dtype).weights if self.replica is not None else None
        self.server = Server.resume(self.folder / "server.bz", self.policy, self.replica)
        self.transport.server = self.server

    def restart_client(self, name: str) -> None:
        self.clients[name].close()
        self.clients[name] = Client(
            worker(int(name[1:]), self.dtype), self.folder / f"{name}.bz", self.signers.get(name), self.folder
        )
        self.transport.clients[name] = self.clients[name]
        self.transport.join([name])

    def run(self) -> None:
        while not self.server.finished:
            self.transport.round()

    def catch_up(self) -> set[str]:
        """Brings every client to the last round; the digests of all weights."""
        self.transport.synchronize()
        held = [*(c.worker for c in self.clients.values()), *([self.replica] if self.replica is not None else [])]
        return {member.digest() for member in held}
