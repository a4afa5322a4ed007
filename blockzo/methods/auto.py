"""Settings of the planner, and what it plans for one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from blockzo.journal.record import Record
from blockzo.methods.base import Method
from blockzo.methods.decoupled import Decoupled

SeedOf = Callable[[int], int]
"""Number of a step -> its seed."""


@dataclass(frozen=True)
class StepPlan:
    """What one step evaluates and applies: `rates` and `eps` for each block; `own`: every example along directions of its own."""

    method: Method
    rates: tuple[float, ...]
    eps: tuple[float, ...]
    seed: int
    own: bool = False


def planned_method(record: Record) -> Decoupled:
    """The method of a step that was planned.

    A step that moves examples along directions of their own is a pair, or one-sided with a loss a direction and the unmoved one;
    it has more numbers than losses, others have fewer.
    """
    counts, losses = tuple(len(update.directions) for update in record.blocks), len(record.losses)
    if sum(counts) >= losses:
        each = 1 if losses == 2 else losses - 1
        return Decoupled(tuple(each if count else 0 for count in counts), one_sided=losses > 2)
    extra = len(record.losses) - 2 * sum(counts)
    return Decoupled(counts, one_sided=len(record.losses) == 1 + sum(counts) and extra != 0, centre=extra == 1)


@dataclass(frozen=True)
class Auto:
    """Settings of the planner: `ZO(method=Auto(...))`; `method="auto"` is `Auto()`.

    Attributes:
        explore: share of the cost that goes to probes.
        most: largest number of directions in a step.
        memory: number of probes that an average goes back; steps count less (`step_weight`).
        eps_loss: a move changes the loss by about this much by its curvature; eps stays within `eps_range` times the given one.
        caution: share of the best rate that is taken.
        window: steps of a stretch whose mean loss is watched, a quarter and four times as many besides; where it rises, all rates
            are halved.
        costs: of one run of each block, in any unit. None counts FLOPs, so that a seed says what is chosen; "seconds" measures on
            this machine, which suits models whose time is not in their products, and chooses otherwise from run to run.
        clip: scalars beyond this many root mean squares are cut.
    """

    explore: float = 0.25
    most: int = 64
    memory: float = 8.0
    step_weight: float = 0.25
    eps_loss: float = 0.005
    eps_range: tuple[float, float] = (0.3, 10.0)
    clip: float = 2.0
    caution: float = 0.6
    window: int = 20
    costs: tuple[float, ...] | Literal["seconds"] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.explore < 1 or self.most < 1 or self.memory < 1 or self.clip <= 0 or self.window < 2:
            raise ValueError(f"{self}: expected 0 < explore < 1, most >= 1, memory >= 1, clip > 0, window >= 2")
        if isinstance(self.costs, str):
            if self.costs != "seconds":
                raise ValueError(
                    f'costs is {self.costs!r}; expected "seconds", a positive number for each block, or None'
                )
        elif self.costs is not None and not all(0 < cost < math.inf for cost in self.costs):
            raise ValueError(f"costs is {self.costs}; expected a positive number for each block")

    def describe(self) -> dict[str, object]:
        return {"name": "Auto", **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}}
