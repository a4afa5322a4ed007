"""What of a value may change the way that code goes: its structure, and switches in it by value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

MOST_ENTRIES, MOST_DEPTH = 32, 4
"""A longer list is one of data, whose length says nothing."""
SMALL = 16
"""Whole numbers below are taken for switches (a mode, an exit), others for sizes."""


def form_of(value: Any, texts: bool = True, depth: int = MOST_DEPTH) -> Any:
    """Hashable; equal for two values that look alike.

    Args:
        texts: strings are switches; where not, they are data.
    """
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return value.dim(), str(value.dtype)
    if value is None or isinstance(value, bool) or (texts and isinstance(value, str)):
        return value
    if isinstance(value, int):
        return kind, value if -SMALL < value < SMALL else None
    if isinstance(value, float):
        return kind, value == 0.0
    held: Mapping[Any, Any] | None = None
    if isinstance(value, Mapping):
        held = value
    elif isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        held = vars(value) if hasattr(value, "__dict__") else None
    if depth and held is not None and len(held) <= MOST_ENTRIES:
        pairs = [(str(name), form_of(one, texts, depth - 1)) for name, one in held.items() if one is not None]
        return kind, tuple(sorted(pairs, key=lambda pair: pair[0]))
    if depth and isinstance(value, (list, tuple)) and len(value) <= MOST_ENTRIES:
        return kind, tuple(form_of(one, texts, depth - 1) for one in value)
    return kind
