"""Whose the training rows are, where the data or code of one's own say so (`--partition column`, `--partition FILE.py:NAME`)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from blockzo.federated.client import partition
from blockzo.finetune.data.rows import column as column_of
from blockzo.finetune.errors import UserError
from blockzo.finetune.own_code import load_own
from blockzo.finetune.sources import Owners
from blockzo.simulate.settings import Federation

ROW = "blockzo_row"
"""The column that partitioners keep, in which each row has its number."""
WANTED = "def NAME(rows) that returns the numbers of each client's rows, or a partitioner (num_partitions, load_partition(i))"
Rows = list[dict[str, Any]]


def owners(federation: Federation) -> Owners | None:
    """None where the rows are split by chance and labels.

    Raises:
        UserError: there is no such file or name, or (when called) rows cannot be split so.
    """
    if federation.partition == "column":
        assert federation.column is not None
        return lambda rows: by_column(rows, str(federation.column), federation.clients)
    if not federation.own_partition:
        return None
    made = load_own("--partition", federation.partition, WANTED)
    return lambda rows: own(made, rows, federation.partition, federation.clients)


def by_column(rows: Rows, name: str, clients: int | None) -> list[list[int]]:
    """One client for each value."""
    values = [column_of(row, name, f"training row {n}", advice="look at --column") for n, row in enumerate(rows, 1)]
    try:
        return partition.by_column(values, clients)
    except ValueError as error:
        raise UserError(f"{error} (--clients and --column)") from None


def own(made: Any, rows: Rows, told: str, clients: int | None) -> list[list[int]]:
    """The rows of each client by a partitioner's word: a function of the rows, or an object (or a class, or a function that
    returns one) like those of flwr-datasets.

    Raises:
        UserError: it fails, or what it gives are no rows.
    """
    try:
        found = _asked(made, rows, clients)
    except UserError as error:
        raise UserError(f"--partition {told}: {error}") from None
    except Exception as error:
        raise UserError(f"--partition {told} failed ({type(error).__name__}: {error}); mend it") from error
    if not found or (clients is not None and clients > len(found)):
        raise UserError(f"--partition {told} made {len(found)} parts; expected {clients or 'one or more'} (--clients)")
    for number, part in enumerate(found[:clients]):
        wrong = next((row for row in part if not 0 <= row < len(rows)), None)
        if not part or wrong is not None:
            has = "no rows" if not part else f"the row {wrong}"
            raise UserError(
                f"--partition {told}: part {number} has {has}; expected some numbers of 0 to {len(rows) - 1}"
            )
    return found[:clients]


def _asked(made: Any, rows: Rows, clients: int | None) -> list[list[int]]:
    if inspect.isclass(made) or not hasattr(made, "load_partition"):
        takes = [p for p in inspect.signature(made).parameters.values() if p.default is p.empty]
        made = made(rows) if takes else made()
    if not hasattr(made, "load_partition"):
        return [list(map(_number, part)) for part in made]
    # the property of flwr-datasets raises where nothing was assigned
    assigned = getattr(made, "is_dataset_assigned", lambda: getattr(made, "dataset", None) is not None)
    if not assigned():
        made.dataset = _data_set(rows)
    count = made.num_partitions if clients is None else min(clients, made.num_partitions)
    return [[_number(row) for row in _numbers(made.load_partition(i))] for i in range(count)]


def _data_set(rows: Rows) -> Any:
    try:
        from datasets import Dataset
    except ImportError:
        raise UserError("partitioners split a data set of `datasets` (pip install datasets)") from None
    # columns that a row lacks are null in it
    return Dataset.from_list([{**row, ROW: number} for number, row in enumerate(rows)])


def _numbers(part: Any) -> Sequence[Any]:
    names = getattr(part, "column_names", None)
    if names is None:
        found: list[Any] = list(part)
        return found
    if ROW not in names:
        raise UserError(
            f"a part has the columns {', '.join(map(str, names))}; expected {ROW} among them, which the partitioner's data set "
            "has: let it split the rows of --train, not data of its own"
        )
    return list(part[ROW])


def _number(row: Any) -> int:
    try:
        return int(row.__index__())
    except AttributeError:
        raise UserError(f"a part holds {row!r}; expected numbers of rows, from 0") from None
