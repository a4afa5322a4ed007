"""The learning rate of a run that was told none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from blockzo import ZO, Blocks
from blockzo.finetune.data.order import BatchOrder
from blockzo.finetune.number_lists import numbers
from blockzo.finetune.objective import Objective
from blockzo.finetune.prepare import Prepared
from blockzo.finetune.settings import UNMEASURED, Settings
from blockzo.methods.auto import Auto
from blockzo.optim.first_rate import suggest_lr

BATCHES = 4


def with_rate(
    settings: Settings,
    prepared: Prepared,
    blocks: Blocks,
    order: BatchOrder,
    loss_fn: Objective,
    say: Callable[[str], None],
) -> Settings:
    """`settings` with the rate that the first batches suggest, where none was given; the journal then holds it as if it were."""
    method = settings.estimator()
    if settings.lr is not None or isinstance(method, Auto):
        return settings
    if settings.objective != "loss" or loss_fn.writes:
        return replace(settings, lr=UNMEASURED)
    zo = ZO(
        prepared.model,
        loss_fn,
        method=method,
        blocks=blocks,
        eps=numbers("--eps", settings.eps) if "," in settings.eps else float(settings.eps),
        distribution=settings.distribution,
        rank=settings.rank,
        seed=settings.seed,
        rows_of=loss_fn.terms,
    )
    batches = [prepared.scorer.batch(prepared.train, order.rows(step)) for step in range(BATCHES)]
    try:
        rate = f"{suggest_lr(zo, batches, settings.batch):g}"
    except ValueError as error:
        say(f"no learning rate can be measured ({error}); it is {UNMEASURED}")
        return replace(settings, lr=UNMEASURED)
    say(f"learning rate {rate}, measured on {BATCHES} batches; --lr sets another")
    return replace(settings, lr=rate)
