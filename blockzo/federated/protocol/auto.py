"""What settings of a run say of its planner: those of `Auto`, with costs, and whether every loss runs the whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from blockzo.journal.outside import MOST_EVALUATIONS, build
from blockzo.methods.auto import Auto


def describe(auto: Auto, costs: Sequence[float], whole: bool) -> dict[str, Any]:
    """For `RunSettings.method`."""
    return {**auto.describe(), "costs": [float(cost) for cost in costs], "whole": whole}


def auto_of(method: Mapping[str, Any]) -> tuple[Auto, bool]:
    """From what `describe` gave, by way of JSON.

    Raises:
        ValueError: a setting is missing, unknown or out of range.
    """
    values = {name: value for name, value in method.items() if name not in ("name", "whole")}
    auto, whole = build(Auto, values, "method Auto"), method.get("whole", False)
    low, high = auto.eps_range
    numbers = (auto.memory, auto.step_weight, auto.eps_loss, auto.clip, auto.caution, low, high)
    if not isinstance(auto.costs, tuple) or not isinstance(whole, bool):
        raise ValueError("a planned run needs the costs of its blocks, and whether every loss runs them all")
    if not all(0 < n <= 1e6 and math.isfinite(n) for n in numbers) or low > high or auto.window > 1 << 16:
        raise ValueError(
            f"{auto}: expected positive numbers up to 1e6, an ascending eps_range and a window of 65536 at most"
        )
    if auto.most > MOST_EVALUATIONS // 2:
        raise ValueError(f"most is {auto.most}; expected {MOST_EVALUATIONS // 2} directions at most")
    return auto, whole
