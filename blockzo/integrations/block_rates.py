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
        self._waiting: tuple[StepResult, list[float]] | None = None

    def rates(self, step: int) -> list[float]:
        """As they are now; `ZO(lr=...)`."""
        return [float(group["lr"]) for group in self.param_groups]

    def wait(self, result: StepResult) -> None:
        """For `step` to apply it, at the rates of now."""
        self._waiting = result, self.rates(0)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Raises RuntimeError where nothing was estimated since the last step, or rates were changed since."""
        if closure is not None or self._waiting is None:
            raise RuntimeError("no step was estimated; expected Trainer.training_step before optimizer.step()")
        (result, rates), self._waiting = self._waiting, None
        if rates != (now := self.rates(0)):
            raise RuntimeError(
                f"learning rates were changed to {now} after the step was estimated with {rates}; expected a schedule, or a "
                "callback that changes them before a step (on_step_begin) or after it (on_step_end)"
            )
        self.commit(result)
