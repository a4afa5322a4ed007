"""Columns of the data by other names than a task's: `--columns question=query,answer=reply`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blockzo.finetune.data.rows import NULL, shown_name
from blockzo.finetune.data.values import Sparse
from blockzo.finetune.errors import UserError


def renamed(
    rows: Iterable[tuple[int, dict[str, Any]]], mapping: Mapping[str, str], path: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with columns under other names, too.

    Args:
        mapping: name that is wanted -> column.

    Raises:
        UserError: there is no such column.
    """
    for number, row in rows:
        nulls: frozenset[str] = getattr(row, "nulls", frozenset())
        for source in mapping.values():
            if source in nulls:
                raise UserError(f"{path}, line {number}: {shown_name(source)} is null; {NULL}")
            if source not in row:
                raise UserError(
                    f"{path}, line {number}: no column {source!r} (columns here: {', '.join(map(shown_name, row))}); look "
                    "at --columns"
                )
        found = Sparse({**row, **{name: row[source] for name, source in mapping.items()}})
        found.nulls = nulls - set(mapping)
        yield number, found


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,completion=answer` -> a mapping.

    Raises:
        UserError: an entry without `=`, or a name twice.
    """
    result: dict[str, str] = {}
    for entry in (text or "").split(",") if text is not None else ():
        name, found, source = (part.strip() for part in entry.partition("="))
        if not found or not name or not source or name in result:
            raise UserError(
                f"--columns has {entry!r}; expected NAME=COLUMN entries, every name once: prompt=question,completion=answer"
            )
        result[name] = source
    return result
