"""Learning-rate schedules as pure functions of the step; a record holds the rate that was used, so replay needs none of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

SCHEDULES = ("constant", "linear", "cosine")


def factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """What the base rate is multiplied with at `step` (from 0) of `steps`.

    It rises linearly over the first `warmup` steps (1/warmup at step 0); then it stays at 1, or falls to near 0 at the last
    step along a line or a half cosine.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def rates(schedule: str, lr: Sequence[float], steps: int, warmup: int = 0) -> Callable[[int], list[float]]:
    """step -> learning rate of every block."""
    factor(schedule, 0, steps, warmup)
    return lambda step: [rate * factor(schedule, step, steps, warmup) for rate in lr]
