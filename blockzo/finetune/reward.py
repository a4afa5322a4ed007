"""A user's reward for written answers: a function in a file, and what it has to give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.own_code import load_own

Reward = Callable[[Sequence[str], Sequence[str], Sequence[Sequence[str]]], Any]
"""(prompts, written answers, right answers of each) -> one number a row; larger is better."""
NAME = "reward"
"""Of its mean among held-out figures."""


def load_reward(name: str) -> Reward:
    """The function that `FILE.py:NAME` names; the file's code runs.

    Raises:
        UserError: there is none.
    """
    wanted = "def NAME(prompts, answers, right)"
    made: Reward = load_own("--reward", name, wanted)
    if not callable(made):
        raise UserError(f"--reward: {name} is no function; expected {wanted.replace('NAME', name.rpartition(':')[2])}")
    return made


def rewards_of(found: Any, rows: int) -> list[float]:
    """
    Raises:
        UserError: they are not one finite number a row.
    """
    try:
        values = [float(value) for value in found]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--reward: the function returned {found!r} ({error}); expected {rows} numbers, one a row"
        ) from None
    if len(values) != rows or not all(map(math.isfinite, values)):
        raise UserError(f"--reward: the function returned {values}; expected {rows} finite numbers, one a row")
    return values
