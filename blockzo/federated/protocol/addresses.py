"""Which noise a run's directions are: seeds and numbers of directions from round, participant, local step and perturbation."""

from __future__ import annotations

from collections.abc import Sequence

from blockzo.federated.protocol.seeds import first_direction, pool_numbers, round_seed
from blockzo.federated.protocol.settings import RunSettings

_POOL_SEED = (1 << 32) - 1
"""The round whose seed is that of a pool; no run is as long."""


def noise_seed(settings: RunSettings, number: int) -> int:
    """Of a round; a finite pool has one seed for all rounds."""
    return round_seed(bytes.fromhex(settings.run), _POOL_SEED if settings.pool else number)


def step_directions(
    settings: RunSettings, number: int, slot: int, step: int, examples: int = 0
) -> list[tuple[int, ...]]:
    """For each block, numbers of the directions of one local step.

    Args:
        examples: with directions of their own (`RunSettings.per_example`); as many as there can be where 0.
    """
    found = []
    for block, (count, most) in enumerate(zip(settings.directions, settings.numbered, strict=True)):
        used = count * examples if examples else most
        if settings.pool:
            total = settings.local_steps * most
            every = pool_numbers(bytes.fromhex(settings.run), number, slot, block, total, settings.pool)
            found.append(every[step * most : step * most + used])
        else:
            first = first_direction(slot, step, settings.local_steps, most)
            found.append(tuple(range(first, first + used)))
    return found


def directions_of_steps(
    settings: RunSettings, number: int, slot: int = 0, counts: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    """For each block, the directions of all local steps of a participant, in their order.

    Args:
        counts: examples with directions of their own, of every local step; empty: as many as there can be.
    """
    counts = counts or (0,) * settings.local_steps
    steps = [step_directions(settings, number, slot, step, examples) for step, examples in enumerate(counts)]
    return [tuple(k for step in steps for k in step[block]) for block in range(settings.blocks)]
