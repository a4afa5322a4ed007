"""Times of a GPU's own work: the device sleeps while the host queues a side, so that no event brackets Python.

That the host was done before the device began is asked of the first event; a round in which it was not is run again with a longer
sleep. A side that waits for the device itself (a whole step that reads its losses) is timed with its host work, as users meet it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle

import torch

SLEEP = 2_000_000
"""Cycles of the first sleep, about a millisecond."""
LONGEST = 2_000_000_000


def timed(
    sides: Mapping[str, Callable[[], object]], rounds: int, waits: bool = False, sleep: int = SLEEP
) -> dict[str, list[float]]:
    """Seconds of every side in every round, in turns; odd rounds go through the sides backwards.

    Args:
        waits: the sides wait for the device, so nothing can be queued ahead.

    Raises:
        RuntimeError: the host is not done with a side before the longest sleep ends.
    """
    for side in sides.values():
        for _ in range(3):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    sleeps = dict.fromkeys(sides, sleep)
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            seconds = None
            while seconds is None:
                seconds = _once(sides[name], 0 if waits else sleeps[name])
                if seconds is None:
                    sleeps[name] *= 2
                    if sleeps[name] > LONGEST:
                        raise RuntimeError(
                            f"{name}: the host takes longer than a sleep of {LONGEST} cycles; is it waiting?"
                        )
            times[name].append(seconds)
    return times


def _once(side: Callable[[], object], sleep: int) -> float | None:
    """None: the device began before all was queued."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if sleep:
        torch.cuda._sleep(sleep)
    begin.record()
    side()
    end.record()
    early = sleep > 0 and begin.query()
    end.synchronize()
    return None if early else begin.elapsed_time(end) / 1e3


def in_turn(weights: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Another of equal weights at each call: more of them than the second-level cache holds, or it would serve them."""
    turns = cycle(weights)
    return lambda: next(turns)


def copies(size: int, cache: int = 128 << 20) -> int:
    """How many tensors of so many bytes are more than a second-level cache (60 MB on an H200) twice over."""
    return max(2, -(-cache // size))
