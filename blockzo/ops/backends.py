"""Which backend serves which tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType

from torch import Tensor

from blockzo.ops import reference
from blockzo.ops.params import Target


def for_tensor(tensor: Tensor) -> ModuleType:
    return reference


def split(found: Iterable[Target]) -> Iterator[tuple[ModuleType, list[Target]]]:
    """Groups targets by the backend that serves them, each group in the given order."""
    groups: dict[ModuleType, list[Target]] = {}
    for target in found:
        groups.setdefault(for_tensor(target.tensor), []).append(target)
    yield from groups.items()
