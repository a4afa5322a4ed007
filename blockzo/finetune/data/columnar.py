"""Rows of Parquet files (with pyarrow) and of data sets of the hub (with `datasets`); both are optional."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blockzo.finetune.data.values import Number, Sparse, flat
from blockzo.finetune.errors import UserError

HUB = "hub:"
BATCH = 1024
"""Rows that are held at once."""


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and columns of every row.

    Raises:
        UserError: pyarrow is missing, or the file is none that it reads.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path}: .parquet files need pyarrow (pip install pyarrow), or write the rows as .jsonl"
        ) from None
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path, or give the data with --train and --validation")
    number = 0
    for rows in _batches(parquet, path):
        for row in rows:
            number += 1
            try:
                yield number, _columns(row)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None


def _batches(parquet: Any, path: Path) -> Iterator[list[dict[str, Any]]]:
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if twice is not None:
                raise UserError(f"{path} has the column {twice!r} twice; give every column a name of its own")
            for batch in file.iter_batches(BATCH):
                yield batch.to_pylist()
    except UserError:
        raise
    except (OSError, ValueError, ArithmeticError, ArrowException) as error:
        raise UserError(f"{path} is no Parquet file that pyarrow reads: {error}") from None


def hub_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and columns of the rows of `hub:OWNER/NAME:SPLIT` or `hub:OWNER/NAME:CONFIGURATION:SPLIT`.

    Raises:
        UserError: another form, `datasets` is missing, or it cannot load this.
    """
    source, *rest = name.removeprefix(HUB).split(":")
    if not source or len(rest) not in (1, 2) or not all(rest):
        raise UserError(
            f"{name!r} is no data set of the hub; expected hub:OWNER/NAME:SPLIT (hub:OWNER/NAME:CONFIGURATION:SPLIT), such as "
            "hub:rajpurkar/squad:train"
        )
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name}: data of the hub need `datasets` (pip install datasets), or give a file") from None
    try:
        found = datasets.load_dataset(source, *rest[:-1], split=rest[-1])
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name} cannot be loaded ({lines[0][:300]}); check the name and the network, or give a file"
        ) from error
    for number, row in enumerate(found, 1):
        yield number, _columns(row)


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: _value(value) for name, value in row.items()}
    found = Sparse(flat({name: value for name, value in values.items() if value is not None}))
    found.nulls = frozenset(name for name, value in values.items() if value is None)
    return found


def _value(value: Any) -> Any:
    """As the rows of a JSONL file have it: numbers as they would be written, NaN as nothing."""
    if isinstance(value, dict):
        return {name: _value(held) for name, held in value.items() if held is not None}
    if isinstance(value, (list, tuple)):
        return [_value(held) for held in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Number(repr(value)) if math.isfinite(value) else None
    return value
