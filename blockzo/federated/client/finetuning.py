"""A fine-tune as a client of rounds does it: its settings for a run, and its batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blockzo.federated.client.worker import directions_of
from blockzo.federated.protocol.auto import describe
from blockzo.federated.protocol.settings import RunSettings
from blockzo.finetune.data.order import BatchOrder
from blockzo.finetune.errors import UserError
from blockzo.finetune.number_lists import numbers
from blockzo.finetune.prepare import Prepared
from blockzo.finetune.settings import UNMEASURED, Settings
from blockzo.methods.auto import Auto
from blockzo.methods.decoupled import Decoupled
from blockzo.noise import Noise
from blockzo.optim.costs import planning_costs
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.reuse import Reuse
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import LossFunction


def measured(auto: Auto, blocks: Blocks, loss_fn: LossFunction, batch: Any, eps: float) -> dict[str, Any]:
    """What a run's settings say of its planner: what the blocks cost, and whether anything can be kept between them.

    Args:
        eps: size of the moves that find it out.
    """
    reuse = Reuse.of(blocks, loss_fn)

    def forward() -> Any:
        return loss_fn(blocks.model, batch)

    every = [1] * len(blocks)
    executor = PerturbedExecutor(blocks, Noise(0), [eps] * len(blocks), reuse=reuse)
    executor.prepare(Decoupled(tuple(every)).tree(len(blocks)), forward)
    whole = reuse.reason is not None
    return describe(auto, planning_costs(auto.costs, blocks, forward, whole), whole)


def planner_of(
    settings: Settings, blocks: Blocks, loss_fn: LossFunction, batch: Callable[[], Any], known: Mapping[str, Any]
) -> tuple[dict[str, Any], list[bool]] | None:
    """What `run_settings` is told of a planner: `measured`, and whether each block can be moved. None where the method is fixed.

    Args:
        batch: makes the one to measure on; not called where costs are known.
        known: the method as the journal of a run that goes on says it, or empty.
    """
    method = settings.estimator()
    if not isinstance(method, Auto):
        return None
    if len(known.get("costs", ())) == len(blocks):
        told = describe(method, known["costs"], known["whole"])
    else:
        (eps, *_) = numbers("--eps", settings.eps)
        told = measured(method, blocks, loss_fn, batch(), eps)
    moved = set(blocks.layout.values())
    return told, [block in moved for block in range(len(blocks))]


def run_settings(
    settings: Settings,
    blocks: int,
    run: str,
    rounds: int,
    planner: tuple[Mapping[str, Any], Sequence[bool]] | None = None,
    **federated: Any,
) -> RunSettings:
    """A fine-tune's settings as those of a federated run; `federated` are further fields of RunSettings.

    Args:
        planner: where a planner chooses the method: what `planner_of` gave.

    Raises:
        UserError: a planner needs these; evaluations in place, which rounds do not have.
    """
    method = settings.estimator()
    if settings.in_place:
        raise UserError("clients evaluate perturbed forwards; leave --in-place out")
    if isinstance(method, Auto):
        if planner is None:
            raise UserError("--method auto needs costs of the blocks that all participants agree on; name a method")
        told, trainable = dict(planner[0]), planner[1]
        directions = tuple(method.most * moves for moves in trainable)
    else:
        told, directions = method.describe(), directions_of(method, blocks)

    def each(name: str) -> tuple[float, ...]:
        # nobody's rows are measured for a rate that all share
        values = numbers(f"--{name}", getattr(settings, name) or UNMEASURED)
        return tuple(values * blocks if len(values) == 1 else values)

    return RunSettings(
        run=run,
        method=told,
        directions=directions,
        rounds=rounds,
        lr=each("lr"),
        eps=each("eps"),
        schedule=settings.schedule,
        warmup=settings.warmup,
        distributions=(settings.distribution,),
        weight_decay=settings.weight_decay,
        stochastic_rounding=settings.stochastic_rounding,
        per_example=settings.batch if settings.per_example else 0,
        rank=settings.rank,
        moved=settings.moved,
        **federated,
    )


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
        # of all rows, made anew at every look
        every = prepared.train.lengths
        lengths = [every[row] for row in self.own]
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
