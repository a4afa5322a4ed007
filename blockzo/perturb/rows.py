"""Rows of a batch: some of them as a batch of their own, or one for each of the groups that run together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from blockzo.perturb.values import MovedValues


def rows_of(batch: Any, places: Sequence[int], rows: int) -> Any:
    """The batch of the rows at `places`, from a batch of `rows`: of every tensor or list in it (in tuples, lists and mappings
    too) whose first dimension is that number, these places; all else as it is.

    Raises:
        ValueError: nothing in it has so many places.
    """
    return _each(batch, rows, lambda value: value[list(places)], lambda value: [value[place] for place in places])


def row_of_each(batch: Any, places: Sequence[int], rows: int, mode: MovedValues) -> Any:
    """The batch of one row that each group of a mode sees: that at its place.

    Raises:
        ValueError: nothing in the batch has `rows` places.
        RuntimeError: a list has a row for each place; groups that run together share all that is no tensor.
    """
    if mode.level is None:
        return rows_of(batch, places, rows)

    def of_list(value: list[Any]) -> Any:
        raise RuntimeError("torch.vmap takes tensors; the batch holds a list with an entry an example")

    return _each(batch, rows, lambda value: mode.lift(value[list(places)].unsqueeze(1)), of_list)


def _each(batch: Any, rows: int, tensor: Callable[[Tensor], Any], of_list: Callable[[list[Any]], Any]) -> Any:
    found = 0

    def taken(value: Any) -> Any:
        nonlocal found
        if isinstance(value, Tensor):
            if not value.dim() or value.shape[0] != rows:
                return value
            found += 1
            return tensor(value)
        if isinstance(value, Mapping):
            return type(value)({key: taken(held) for key, held in value.items()})  # type: ignore[call-arg]
        if isinstance(value, list) and len(value) == rows and not any(isinstance(held, Tensor) for held in value):
            found += 1
            return of_list(value)
        if isinstance(value, (list, tuple)):
            held = map(taken, value)
            return type(value)(*held) if hasattr(value, "_fields") else type(value)(held)
        return value

    result = taken(batch)
    if not found:
        raise ValueError(f"nothing in a batch of {rows} rows has that many places; it cannot be taken apart")
    return result
