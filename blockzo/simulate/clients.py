"""Virtual clients: they share the weights of the process and differ by their rows."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence

from blockzo.federated.client import partition
from blockzo.federated.client.finetuning import Batches
from blockzo.federated.client.worker import Weights, Worker
from blockzo.federated.protocol.estimate import Estimate
from blockzo.federated.protocol.examples import widths
from blockzo.federated.protocol.planned import mark_of
from blockzo.federated.protocol.round_record import scalar_limit
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.finetune.errors import UserError
from blockzo.finetune.prepare import Prepared
from blockzo.simulate.settings import Federation


def split(prepared: Prepared, federation: Federation, seed: int) -> list[list[int]]:
    """Training rows of each client.

    Raises:
        UserError: the data cannot be split so.
    """
    if prepared.parts is not None:
        return prepared.parts
    assert federation.clients is not None
    labels = prepared.train.labels
    if federation.partition == "label" and prepared.task is None:
        raise UserError(
            "--partition label is for tasks with labels; give iid, dirichlet (sizes differ), column or your own"
        )
    try:
        if federation.partition == "iid":
            return partition.iid(len(labels), federation.clients, seed)
        if federation.partition == "label":
            return partition.by_label(labels, federation.clients, seed)
        return partition.dirichlet(labels, federation.clients, federation.alpha, seed)
    except ValueError as error:
        named = "--clients and --alpha" if federation.partition == "dirichlet" else "--clients"
        raise UserError(f"{prepared.source.train_path}: {error} ({named})") from None


def parts_digest(parts: Sequence[Sequence[int]]) -> str:
    """SHA-256: equal where the same clients have the same rows."""
    return hashlib.sha256(repr([list(part) for part in parts]).encode()).hexdigest()


class Liar(Worker):
    """A client that answers with random scalars, as large as they may be, drawn from its number and the round."""

    def __init__(self, weights: Weights, batch_of: Batches, number: int, largest_loss_change: float) -> None:
        super().__init__(weights, batch_of)
        self.number, self.largest = number, largest_loss_change

    def estimate(self, number: int, slot: int) -> Estimate:
        settings = self._settings
        assert settings is not None
        chance = random.Random(f"liar {self.number} {number}")
        policy = RoundPolicy(largest_loss_change=self.largest)
        _, rows = self.batch_of(number, 0)
        if settings.planned:
            assert self.weights.planner is not None
            plan = self.weights.planner.plan(number)
            losses = [chance.uniform(0, self.largest) for _ in range(plan.method.tree(self.blocks).leaves)]
            return Estimate(tuple(losses), chance.random(), rows, plan=mark_of(plan))
        counts = (rows,) * settings.local_steps * settings.counted
        blocks = range(settings.blocks)
        # all examples of a direction together
        limits = [scalar_limit(settings, policy, b) / (rows if settings.per_example else 1) for b in blocks]
        found = zip(itertools.cycle(limits), widths(settings, counts), strict=False)
        scalars = tuple(chance.uniform(-limit, limit) for limit, width in found for _ in range(width))
        return Estimate(scalars, chance.random(), rows, counts)
