"""A user's reward for written answers: a function in a file, and what it has to give."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.own_code import load_own

Reward = Callable[[Sequence[str], Sequence[str], Sequence[Sequence[str]]], Any]
"""(prompts, written answers, right answers of each) -> one number a row; larger is better."""
LARGEST = 1e30
NAME = "reward"
"""Of its mean among held-out figures."""


def load_reward(name: str) -> Reward:
    """The function that `FILE.py:NAME` names; the file's code runs.

    Raises:
        UserError: there is none.
    """
    wanted = "def NAME(prompts, answers, right)"
    # what it prints is no result of the command
    with redirect_stdout(sys.stderr):
        made: Reward = load_own("--reward", name, wanted)
    if not callable(made):
        raise UserError(f"--reward: {name} is no function; expected {wanted.replace('NAME', name.rpartition(':')[2])}")
    return made


def rewarded(
    reward: Reward, prompts: Sequence[str], answers: Sequence[str], right: Sequence[Sequence[str]]
) -> list[float]:
    """One number a row.

    Raises:
        UserError: the function fails, or gives something else.
    """
    try:
        with redirect_stdout(sys.stderr):
            # lists of its own, which it may change
            found = reward(list(prompts), list(answers), [list(own) for own in right])
            return rewards_of(found, len(answers))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--reward: the function failed ({type(error).__name__}: {error}) at {Path(last.filename).name}, line "
            f"{last.lineno}; mend it. Expected def NAME(prompts, answers, right), which returns {len(answers)} numbers, one a row"
        ) from error


def rewards_of(found: Any, rows: int) -> list[float]:
    """
    Raises:
        UserError: they are not one finite number a row, in the order of the rows.
    """
    expected = f"expected {rows} finite numbers, one a row"
    if isinstance(found, (str, bytes, bytearray, Mapping, Set)):
        raise UserError(f"--reward: the function returned {found!r:.200}, a {type(found).__name__}; {expected}")
    try:
        values = [float(value) for value in found]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"--reward: the function returned {found!r:.200} ({error}); {expected}") from None
    # losses are float32
    if len(values) != rows or not all(abs(value) <= LARGEST for value in values):
        raise UserError(f"--reward: the function returned {values!r:.200}; {expected} of at most {LARGEST:g}")
    return values
