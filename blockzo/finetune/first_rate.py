"""The learning rate of a run that was told none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from blockzo import ZO
from blockzo.finetune.objective import Objective
from blockzo.finetune.settings import UNMEASURED, Settings
from blockzo.methods.auto import Auto
from blockzo.optim.first_rate import suggest_lr

BATCHES = 4


def with_rate(
    settings: Settings, zo: ZO, loss_fn: Objective, batches: Iterable[Any], say: Callable[[str], None]
) -> Settings:
    """`settings` with the rate that the first batches suggest, where none was given; the journal then holds it as if it were.

    Args:
        zo: the run's own, whose rate is yet to be set.
        batches: the first ones; they are made where they are needed.
    """
    if settings.lr is not None or isinstance(zo.method, Auto):
        return settings
    if settings.objective != "loss" or loss_fn.writes:
        return replace(settings, lr=UNMEASURED)
    first = list(islice(batches, BATCHES))
    try:
        rate = f"{suggest_lr(zo, first, settings.batch):g}"
    except ValueError as error:
        say(f"no learning rate can be measured ({error}); it is {UNMEASURED}")
        return replace(settings, lr=UNMEASURED)
    say(f"learning rate {rate}, measured on {len(first)} batches; --lr sets another")
    return replace(settings, lr=rate)
