"""The best weights of a run by its held-out rows: a number of steps. The journal holds them, so nothing else is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_SCORES = frozenset({"lr", "flops", "seconds", "loss", "difference", "snr", "spread", "unmoved", "before"})


def best(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The evaluation of the least held-out loss, the last such, step 0 (before training) among them; None where no line has one.

    Args:
        lines: those of metrics.jsonl.

    Returns:
        Its `step`, `eval_loss`, `eval_rows` and the other scores of that line.
    """
    scored = [line for line in lines if "eval_loss" in line]
    if not scored:
        return None
    found = min(reversed(scored), key=lambda line: line["eval_loss"])
    return {name: value for name, value in found.items() if name not in NOT_SCORES}
