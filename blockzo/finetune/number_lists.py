"""Options that hold one number, or one a block, as text with commas: `--lr 1e-6,1e-4`, `--split 12,24`."""

from __future__ import annotations

import math

from blockzo.finetune.errors import UserError
from blockzo.journal.outside import MOST_BLOCKS, shown
from blockzo.journal.record import float32


def numbers(option: str, text: str) -> list[float]:
    """Comma-separated finite numbers.

    Raises:
        UserError: names `option`.
    """
    result = []
    for entry in entries(option, str(text)):
        try:
            value = float(entry)
        except ValueError:
            raise UserError(
                f"{option} is {shown(text)}; expected a number, or numbers with commas (one a block)"
            ) from None
        if not math.isfinite(float32(value)):
            raise UserError(f"{option} is {shown(text)}; expected numbers that are finite in float32: give lower ones")
        result.append(value)
    return result


def counts(option: str, text: str) -> list[int]:
    """Comma-separated whole numbers of 0 or more.

    Raises:
        UserError: names `option`.
    """
    found = numbers(option, text)
    if any(value != int(value) or value < 0 for value in found):
        raise UserError(f"{option} is {text}; expected whole numbers with commas, one a block")
    return [int(value) for value in found]


def places(option: str, text: str) -> list[int | float | str]:
    """Where blocks begin: layers (`12,24`), fractions (`0.5`), `head`.

    Raises:
        UserError: names `option`.
    """
    return [_place(option, entry.strip()) for entry in entries(option, text)]


def entries(option: str, text: str) -> list[str]:
    if text.count(",") >= MOST_BLOCKS or len(text) > 64 * MOST_BLOCKS:
        raise UserError(f"{option} is {shown(text)}; expected {MOST_BLOCKS} numbers at most")
    return text.split(",")


def _place(option: str, text: str) -> int | float | str:
    if text == "head":
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError
        return value
    except ValueError:
        raise UserError(
            f"{option} has {shown(text)}; expected layer numbers (12,24), fractions (0.5) or head"
        ) from None
