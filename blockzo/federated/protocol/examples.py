"""Rounds in which every example of a client has directions of its own (`RunSettings.per_example`): which scalars are whose.

A client's local step numbers K N directions of a block, N = `per_example` examples at most and K directions each. Of n examples,
example b has the numbers k n + b, as in `blockzo.optim.examples`: the first K n of them. The others have no scalar; where the
number of examples must not be told (privacy, secure sums), a zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from blockzo.federated.protocol.addresses import directions_of_steps
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.record import Record

Counts = tuple[int, ...]
"""Examples of every local step; empty: as many as there can be."""
Contributors = list[tuple[int, Counts]]
"""Slots of the clients in a record, ascending, with their examples. Shared directions: slot 0, and the most of any client."""


def widths(settings: RunSettings, counts: Sequence[int] = ()) -> list[int]:
    """How many scalars there are of every local step and block, in the order of a reply."""
    examples = list(counts) or [max(1, settings.per_example)] * settings.local_steps
    return [count * n for n in examples for count in settings.directions]


def wrong_counts(settings: RunSettings, counts: Sequence[int]) -> str | None:
    """Why these cannot be the examples of a client's local steps, or None."""
    if len(counts) != settings.local_steps * settings.counted:
        return f"{len(counts)} numbers of examples; expected {settings.local_steps * settings.counted}"
    if not all(1 <= n <= settings.per_example for n in counts):
        return f"{max(counts)} and {min(counts)} examples in local steps; expected 1 to {settings.per_example} in each"
    return None


def padded(
    settings: RunSettings, scalars: Sequence[float], counts: Sequence[int], to: Sequence[int] = ()
) -> list[float]:
    """The scalars as those of `to` examples (as many as there can be where empty), with zeros for those that lack."""
    found: list[float] = []
    at = 0
    for own, width in zip(widths(settings, counts), widths(settings, to), strict=True):
        found += [*scalars[at : at + own], *[0.0] * (width - own)]
        at += own
    return found


def most_of(every: Sequence[Sequence[int]]) -> Counts:
    """Of every local step the most examples that a client has."""
    return tuple(map(max, zip(*every, strict=True)))


def contributors_of(record: Record, settings: RunSettings) -> Contributors | None:
    """Who is in a record, by its directions alone; None: they follow from no list of slots and numbers of examples."""
    block = next(b for b, count in enumerate(settings.directions) if count)
    given = record.blocks[block].directions
    slots = [0]
    if settings.own_directions and not settings.pool:
        width = settings.local_steps * settings.numbered[block]
        slots = [slot for slot, _ in groupby(given, lambda k: k // width)]
    elif settings.own_directions:
        return None
    found: Contributors = []
    left = iter((*given, None))
    following = next(left)
    for slot in slots:
        every = directions_of_steps(settings, record.step, slot)[block]
        counts = []
        for numbers in _steps(every, settings.numbered[block]):
            used = 0
            while used < len(numbers) and following == numbers[used]:
                following, used = next(left), used + 1
            counts.append(used // settings.directions[block])
        found.append((slot, tuple(counts)))
    if following is not None or not all(n for _, counts in found for n in counts):
        return None
    fits = [b.directions for b in record.blocks] == directions_of(found, settings, record.step)
    return found if fits else None


def directions_of(found: Contributors, settings: RunSettings, number: int) -> list[tuple[int, ...]]:
    """For each block the directions of a record."""
    every = [directions_of_steps(settings, number, slot, counts) for slot, counts in found]
    return [tuple(k for own in every for k in own[block]) for block in range(settings.blocks)]


def _steps(numbers: Sequence[int], width: int) -> Iterator[Sequence[int]]:
    return (numbers[at : at + width] for at in range(0, len(numbers), width))
