"""The optimizer that a Trainer holds: learning rates of blocks, for schedulers, and the step that waits to be applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from blockzo.optim.step import StepResult
from blockzo.perturb.blocks import Blocks


class BlockRates(torch.optim.Optimizer):
    """One group of parameters a block. `step` applies what was estimated; there is no state.

    Args:
        rates: learning rate of each block.
        commit: takes a step's result: `ZO.commit`.
    """

    def __init__(self, blocks: Blocks, rates: Sequence[float], commit: Callable[[StepResult], None]) -> None:
        groups = [{"params": list(blocks.parameters(block).values()), "lr": rate} for block, rate in enumerate(rates)]
        super().__init__(groups, {})
        self.commit = commit
        self.waiting: StepResult | None = None

    def rates(self, step: int) -> list[float]:
        """As they are now; `ZO(lr=...)`."""
        return [float(group["lr"]) for group in self.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Raises RuntimeError where nothing was estimated since the last step."""
        if closure is not None or self.waiting is None:
            raise RuntimeError("no step was estimated; expected Trainer.training_step before optimizer.step()")
        result, self.waiting = self.waiting, None
        self.commit(result)
