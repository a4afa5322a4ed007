"""Which backend serves which tensor: the first of the registry that is for its device and can be loaded, else the reference.

BLOCKZO_BACKEND=<name> leaves all others aside; what that one does not serve, the reference does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from torch import Tensor

from blockzo.ops.backends import reference
from blockzo.ops.backends.base import Backend
from blockzo.ops.backends.registry import BACKENDS, asked_for, loaded
from blockzo.ops.params import Target
from blockzo.ops.steps import Step


@cache
def serving(device: str) -> Backend:
    """The backend for a type of device; looked for once, at first use, so that importing blockzo cannot fail."""
    asked = asked_for()
    for entry in BACKENDS.values() if asked is None else (asked,):
        if device in entry.devices:
            found = loaded(entry.name)
            if found is not None:
                return found
    return reference


def for_tensor(tensor: Tensor) -> Backend:
    return serving(tensor.device.type)


def split(found: Iterable[Target]) -> Iterator[tuple[Backend, list[Target]]]:
    """Groups targets by the backend that serves them, each group in the given order."""
    groups: dict[int, tuple[Backend, list[Target]]] = {}
    for target in found:
        backend = for_tensor(target.tensor)
        groups.setdefault(id(backend), (backend, []))[1].append(target)
    yield from groups.values()


def move(found: Iterable[Target], step: Step, kind: str) -> None:
    """`kind`: "perturb", "shift" or "update"."""
    for backend, part in split(found):
        if kind == "perturb":
            backend.perturb_(part, step)
        elif kind == "shift":
            backend.shift_(part, step)
        else:
            backend.replay_(part, [step])
