"""Virtual clients: they share the weights of the process and differ by their rows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blockzo.federated import partition
from blockzo.federated.estimate import Estimate
from blockzo.federated.round_record import scalar_limit
from blockzo.federated.settings import RoundPolicy
from blockzo.federated.worker import Weights, Worker
from blockzo.finetune.errors import UserError
from blockzo.finetune.order import BatchOrder
from blockzo.finetune.prepare import Prepared
from blockzo.finetune.rows import column as column_of
from blockzo.finetune.rows import read_rows
from blockzo.finetune.settings import Settings
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


def log_prior(labels: Sequence[int], classes: int) -> Tensor:
    """float32 [classes]: logarithms of the labels' shares, each counted once more than it is there."""
    counts = [1 + sum(label == kind for label in labels) for kind in range(classes)]
    return torch.tensor([math.log(count / sum(counts)) for count in counts])


class Batches:
    """A client's batch of a round and local step: a function of these two, so that a repeated round sees the same rows.

    Args:
        adjusted: add the logarithm of the client's label shares to its logits, so that it does not teach the model how skewed its
            own labels are (logit adjustment: Menon et al., ICLR 2021; on clients: Zhang et al., ICML 2022).
    """

    def __init__(
        self,
        prepared: Prepared,
        rows: Sequence[int],
        settings: Settings,
        client: int,
        local_steps: int,
        adjusted: bool = False,
    ) -> None:
        self.prepared, self.own, self.local_steps = prepared, list(rows), local_steps
        lengths = [prepared.train.lengths[row] for row in self.own]
        seed = (settings.seed * 1_000_003 + client + 1) % (1 << 64)
        self.order = BatchOrder(lengths, settings.batch, seed, settings.pool)
        self.prior: Tensor | None = None
        if adjusted:
            if prepared.task is None:
                raise UserError("--logit-adjustment is for tasks with labels; leave it out for language modelling")
            labels = prepared.train.labels
            self.prior = log_prior([labels[row] for row in self.own], len(prepared.task.words))

    def __call__(self, number: int, step: int) -> tuple[Any, int]:
        chosen = [self.own[i] for i in self.order.rows(number * self.local_steps + step)]
        batch = self.prepared.scorer.batch(self.prepared.train, chosen)
        return batch if self.prior is None else {**batch, "log_prior": self.prior}, len(chosen)


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
        limits = [scalar_limit(settings, policy, b) for b, n in enumerate(settings.directions) for _ in range(n)]
        scalars = tuple(chance.uniform(-limit, limit) for limit in limits * settings.local_steps)
        _, rows = self.batch_of(number, 0)
        return Estimate(scalars, chance.random(), rows)
