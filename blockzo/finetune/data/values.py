"""Values of a row as every kind of file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Number(str):
    """A number as it is written (in a JSON file), or would be."""


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """With what is inside objects by names with dots: `{"target": {"word": "it"}}` has the column `target.word`, too."""
    found = dict(row)
    for name, value in row.items():
        for key, held in flat(value).items() if isinstance(value, dict) else ():
            if f"{name}.{key}" in row:
                raise ValueError(f"{name}.{key} is there twice, once inside {name!r}; give every name once")
            found[f"{name}.{key}"] = held
    return found


class Sparse(dict[str, Any]):
    """A row of a table whose every row has all columns; `nulls` have nothing in this one, and are left out of it."""

    nulls: frozenset[str] = frozenset()
