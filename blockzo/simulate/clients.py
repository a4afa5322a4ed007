"""Virtual clients: they share the weights of the process and differ by their rows."""

from __future__ import annotations

import itertools
import random

from blockzo.federated.client import partition
from blockzo.federated.client.finetuning import Batches
from blockzo.federated.client.worker import Weights, Worker
from blockzo.federated.protocol.estimate import Estimate
from blockzo.federated.protocol.examples import widths
from blockzo.federated.protocol.planned import mark_of
from blockzo.federated.protocol.round_record import scalar_limit
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.finetune.data.rows import column as column_of
from blockzo.finetune.data.rows import read_rows
from blockzo.finetune.errors import UserError
from blockzo.finetune.prepare import Prepared
from blockzo.simulate.settings import Federation


def split(prepared: Prepared, federation: Federation, seed: int) -> list[list[int]]:
    """Training rows of each client.

    Raises:
        UserError: the data cannot be split so.
    """
    labels = prepared.train.labels
    try:
        if federation.partition == "column":
            assert federation.column is not None
            return partition.by_column(column_values(prepared, federation.column), federation.clients)
        assert federation.clients is not None
        if federation.partition == "iid":
            return partition.iid(len(labels), federation.clients, seed)
        if federation.partition == "label":
            return partition.by_label(labels, federation.clients, seed)
        return partition.dirichlet(labels, federation.clients, federation.alpha, seed)
    except UserError:
        raise
    except ValueError as error:
        named = {"dirichlet": "--clients and --alpha", "column": "--clients and --column"}.get(
            federation.partition, "--clients"
        )
        raise UserError(f"{prepared.source.train_path}: {error} ({named})") from None


def column_values(prepared: Prepared, column: str) -> list[str]:
    """A column of the file that the training rows come from, in their order."""
    path = prepared.source.train_path
    values: dict[str, str] = {}
    for number, row in read_rows(path):
        place = f"{path}, line {number}"
        values[place] = column_of(row, column, place, advice="look at --column")
    return [values[example.place] for example in prepared.source.train]


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
