"""Metrics of TRL's trainers, which count what their loss is called with: a step calls it for every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

TOTAL = "_total_train_tokens"


@contextmanager
def counted_once(trainer: Any, batches: Sequence[Any]) -> Iterator[None]:
    """Tokens of the micro-batches of a step count once; entropy and accuracy are means over its evaluations."""
    before = getattr(trainer, TOTAL, None)
    yield
    if before is None:
        return
    own = sum(_tokens(batch) for batch in batches)
    every = trainer.accelerator.gather(torch.tensor([own], device=trainer.args.device)).sum().item()
    setattr(trainer, TOTAL, before + every)
    trainer._metrics["train"]["num_tokens"] = [before + every]


def _tokens(batch: Any) -> int:
    """As TRL counts them."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(batch["position_ids"].shape[1]) if "position_ids" in batch else 0
