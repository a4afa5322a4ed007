"""Rows of a batch: some of them as a batch of their own, or one for each of the groups that run together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from torch import Tensor

from blockzo.perturb.values import MovedValues


def rows_of(batch: Any, places: Sequence[int], rows: int) -> Any:
    """The batch of the rows at `places`, from a batch of `rows`: of every tensor, array, list or tuple of strings and numbers in
    it (in tuples, lists and mappings too) whose first dimension is that number, these places; all else as it is.

    Raises:
        ValueError: nothing in it has so many places.
    """
    return _each(batch, rows, lambda value: value[list(places)], lambda value: _places_of(value, places))


def row_of_each(batch: Any, places: Sequence[int], rows: int, mode: MovedValues) -> Any:
    """The batch of one row that each group of a mode sees: that at its place.

    Raises:
        ValueError: nothing in the batch has `rows` places.
        RuntimeError: a list has a row for each place; groups that run together share all that is no tensor.
    """
    if mode.level is None:
        return rows_of(batch, places, rows)

    def of_list(value: Any) -> Any:
        kind = "an array" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise RuntimeError(f"torch.vmap takes tensors; the batch holds {kind} with an entry an example")

    return _each(batch, rows, lambda value: mode.lift(value[list(places)].unsqueeze(1)), of_list)


Split = tuple[object, ...]


def split_of(batch: Any, rows: int) -> Split:
    """Names in a batch of `rows`, and what in it has a row an example: equal for batches that are taken apart alike."""
    notes: list[object] = []

    def note(mark: object) -> Callable[[Any], Any]:
        def noted(value: Any) -> Any:
            notes.append(mark)
            return value

        return noted

    _each(batch, rows, note("rows"), note("entries"), note("whole"), notes.append)
    return tuple(notes)


def _places_of(value: Any, places: Sequence[int]) -> Any:
    if isinstance(value, np.ndarray):
        return value[list(places)]
    return type(value)(value[place] for place in places)


def _as_it_is(value: Any) -> Any:
    return value


def _each(
    batch: Any,
    rows: int,
    tensor: Callable[[Tensor], Any],
    entries: Callable[[Any], Any],
    whole: Callable[[Any], Any] = _as_it_is,
    named: Callable[[object], Any] = _as_it_is,
) -> Any:
    """The batch with `tensor` of its tensors that have `rows` rows, `entries` of what else has so many, `whole` of other tensors
    and arrays; `named` is given the names in each mapping."""
    found = 0

    def taken(value: Any) -> Any:
        nonlocal found
        if isinstance(value, (Tensor, np.ndarray)):
            if not value.ndim or value.shape[0] != rows:
                return whole(value)
            found += 1
            return tensor(value) if isinstance(value, Tensor) else entries(value)
        if isinstance(value, Mapping):
            named(tuple(value))
            own = {key: taken(held) for key, held in value.items()}
            if not isinstance(value, MutableMapping):
                return type(value)(own)  # type: ignore[call-arg]
            # its own kind of mapping, whatever it is made with
            result = copy(value)
            for key, held in own.items():
                result[key] = held
            return result
        if _an_entry_each(value, rows):
            found += 1
            return entries(value)
        if isinstance(value, (list, tuple)):
            held = map(taken, value)
            return type(value)(*held) if hasattr(value, "_fields") else type(value)(held)
        return value

    result = taken(batch)
    if not found:
        raise ValueError(f"nothing in a batch of {rows} rows has that many places; it cannot be taken apart")
    return result


def _an_entry_each(value: Any, rows: int) -> bool:
    """A list with an entry a row; or a tuple of strings or numbers, as a DataLoader makes of texts."""
    if not isinstance(value, (list, tuple)) or len(value) != rows:
        return False
    if isinstance(value, tuple):
        return not hasattr(value, "_fields") and all(isinstance(held, (str, bytes, int, float)) for held in value)
    return not any(isinstance(held, (Tensor, np.ndarray)) for held in value)
