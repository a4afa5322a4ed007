"""One step: its seed, its settings for each block, and what it gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blockzo.journal.record import Record
from blockzo.methods import Scalars
from blockzo.noise import Noise


@dataclass(frozen=True)
class StepResult:
    """One step.

    `loss` is the mean of the tree's losses (they lie around the unmoved loss); `losses` are the leaves in order; `scalars` the
    estimated slope along each direction, for each block; `forwards` the number of losses; `flops` forward FLOPs as counted
    while running; `record` what was applied.
    """

    loss: float
    scalars: Scalars
    losses: tuple[float, ...]
    seed: int
    forwards: int
    flops: int
    record: Record


def step_seed(seed: int, step: int) -> int:
    """Seed of one step: SplitMix64 (Steele et al., OOPSLA 2014) of the run's seed; distinct steps get distinct seeds."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    return mix((mix(seed) + step * 0x9E3779B97F4A7C15) & mask)


def distributions_of(value: str | Sequence[str], blocks: int) -> list[str]:
    values = [value] * blocks if isinstance(value, str) else list(value)
    if len(values) != blocks:
        raise ValueError(f"distribution has {len(values)} entries for {blocks} blocks; expected one or one a block")
    return [Noise(0, v).distribution for v in values]


def per_block(what: str, value: float | Sequence[float], blocks: int) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * blocks  # type: ignore[arg-type]
    if len(values) != blocks:
        raise ValueError(f"{what} has {len(values)} entries for {blocks} blocks; expected one number or one a block")
    if not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"{what} is {value}; expected finite numbers that are not negative")
    return values
