"""How every method's rate is chosen: the same search, the same number of runs and FLOPs, never the test rows.

From the centre of a grid (`methods.rates_at`), the next run is always at a neighbour of the best place so far that was not run
yet: one step up, then one down, axis after axis. It ends when all neighbours of the best were run, or after RUNS runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.comparison.store import Point

RUNS, MOST_RUNS = 5, 8
SHARE = 0.3
"""A tuning run's part of the budget."""

Place = tuple[int, ...]


def score(points: Sequence[Point]) -> float:
    """Loss on the dev rows at a run's end; infinite if diverged.

    The mean over its checkpoints was tried first: in short runs it chose rates so low that methods with few steps hardly moved.
    """
    return math.inf if any(point.diverged for point in points) else points[-1].loss


def best(scores: Mapping[Place, float]) -> Place:
    """The place of the lowest score; of equal ones the first that was run."""
    return min(scores, key=lambda place: scores[place])


def proposal(scores: Mapping[Place, float], axes: int, runs: int = RUNS) -> Place | None:
    """Where the next tuning run is; None where the search has ended. `scores` are in the order in which they were run."""
    if not scores:
        return (0,) * axes
    if len(scores) >= runs and not (len(scores) < MOST_RUNS and _at_the_edge(scores)):
        return None
    return next((place for place in _neighbours(best(scores)) if place not in scores), None)


def _at_the_edge(scores: Mapping[Place, float]) -> bool:
    """Whether there is one rate and none beyond the best was tried."""
    return len(scores) > 1 and len(best(scores)) == 1 and best(scores) in (min(scores), max(scores))


def _neighbours(place: Place) -> Iterator[Place]:
    for axis in range(len(place)):
        for step in (1, -1):
            yield (*place[:axis], place[axis] + step, *place[axis + 1 :])
