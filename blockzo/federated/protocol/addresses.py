"""Which noise a run's directions are: seeds and numbers of directions from round, participant, local step and perturbation."""

from __future__ import annotations

from blockzo.federated.protocol.seeds import first_direction, pool_numbers, round_seed
from blockzo.federated.protocol.settings import RunSettings

_POOL_SEED = (1 << 32) - 1
"""The round whose seed is that of a pool; no run is as long."""


def noise_seed(settings: RunSettings, number: int) -> int:
    """Of a round; a finite pool has one seed for all rounds."""
    return round_seed(bytes.fromhex(settings.run), _POOL_SEED if settings.pool else number)


def step_directions(settings: RunSettings, number: int, slot: int, step: int) -> list[tuple[int, ...]]:
    """For each block, numbers of the directions of one local step."""
    found = []
    for block, count in enumerate(settings.directions):
        if settings.pool:
            total = settings.local_steps * count
            every = pool_numbers(bytes.fromhex(settings.run), number, slot, block, total, settings.pool)
            found.append(every[step * count : (step + 1) * count])
        else:
            first = first_direction(slot, step, settings.local_steps, count)
            found.append(tuple(range(first, first + count)))
    return found


def shared_directions(settings: RunSettings, number: int) -> list[tuple[int, ...]]:
    """For each block, the directions of a record of shared directions: those of all local steps, in their order."""
    steps = [step_directions(settings, number, 0, step) for step in range(settings.local_steps)]
    return [tuple(k for step in steps for k in step[block]) for block in range(settings.blocks)]
