"""A task that runs in a plain clone within seconds: a small network on made-up data, another part of it on every client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.federated.client.worker import Weights, Worker, directions_of
from blockzo.federated.flower.plan import Plan
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.methods.spzo import SPZO
from blockzo.perturb.blocks import Blocks

FEATURES, CLASSES, ROWS, BATCH = 16, 4, 256, 32


def model() -> Blocks:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return Blocks(network, "auto")


def data(part: int) -> tuple[Tensor, Tensor]:
    """Rows and classes of one client: shape (ROWS, FEATURES) and (ROWS,); its rows lie elsewhere than other clients'."""
    generator = torch.Generator().manual_seed(1 + part)
    rows = torch.randn(ROWS, FEATURES, generator=generator) + 0.3 * part
    return rows, (rows[:, :CLASSES] + 0.5 * rows[:, CLASSES : 2 * CLASSES]).argmax(1)


def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def worker(config: Mapping[str, Any]) -> Worker:
    """The worker of one client; reads "partition-id"."""
    blocks = model()
    rows, classes = data(int(config.get("partition-id", 0)))

    def batch_of(number: int, step: int) -> tuple[Any, int]:
        generator = torch.Generator().manual_seed(number * 10_007 + step)
        chosen = torch.randint(ROWS, (BATCH,), generator=generator)
        return (rows[chosen], classes[chosen]), BATCH

    def held_out() -> tuple[int, float, float]:
        with torch.no_grad():
            scores = blocks.model(rows)
        right = (scores.argmax(1) == classes).float().mean()
        return ROWS, float(nn.functional.cross_entropy(scores, classes)), float(right)

    return Worker(Weights(blocks), batch_of, loss, held_out)


def plan(config: Mapping[str, Any]) -> Plan:
    """Reads "rounds", "local-steps", "clients", "deadline", "secure-sum", "per-example", and "run", 32 hexadecimal digits or made
    up."""
    import secrets

    blocks, method = model(), SPZO(1, 2)
    torch.set_num_threads(1)
    settings = RunSettings(
        run=str(config.get("run") or secrets.token_hex(16)),
        method=method.describe(),
        directions=directions_of(method, len(blocks)),
        rounds=int(config.get("rounds", 5)),
        lr=(0.02, 0.02),
        eps=(1e-3, 1e-3),
        local_steps=int(config.get("local-steps", 1)),
        secure_sum=bool(config.get("secure-sum", False)),
        per_example=BATCH if config.get("per-example", False) else 0,
    )
    weights = Weights(blocks)
    policy = RoundPolicy(quorum=int(config.get("clients", 1)), deadline=float(config.get("deadline", 30)))
    return Plan(settings, weights.base_digest, blocks.layout, policy, weights)
