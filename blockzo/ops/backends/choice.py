"""Which backend serves which tensor: the first of the registry that is for its device and can be loaded, else the reference.

BLOCKZO_BACKEND=<name> leaves all others aside; what that one does not serve, the reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

from blockzo import noise
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


def for_rank(tensor: Tensor, rank: int) -> Backend:
    """The backend for steps of that rank: what has no kernels for it leaves it to the reference."""
    backend = for_tensor(tensor)
    return reference if rank and not backend.LOW_RANK else backend


def for_target(target: Target, rank: int) -> Backend:
    """The same for operations that move; of scales and a rank together nobody has kernels."""
    backend = for_rank(target.tensor, rank)
    return reference if target.per_weight is not None and (rank or not backend.PER_WEIGHT) else backend


def factors_on(device: torch.device) -> Callable[..., Tensor]:
    """`blockzo.noise.factors`, or kernels with the same bits."""
    return getattr(serving(device.type), "factors", noise.factors)


def split(found: Iterable[Target], rank: int = 0) -> Iterator[tuple[Backend, list[Target]]]:
    """Groups targets by the backend that serves them, each group in the given order."""
    groups: dict[int, tuple[Backend, list[Target]]] = {}
    for target in found:
        backend = for_target(target, rank)
        groups.setdefault(id(backend), (backend, []))[1].append(target)
    yield from groups.values()


def move(found: Iterable[Target], step: Step, kind: str) -> None:
    """`kind`: "perturb", "shift" or "update"."""
    for backend, part in split(found, step.rank):
        if kind == "perturb":
            backend.perturb_(part, step)
        elif kind == "shift":
            backend.shift_(part, step)
        else:
            backend.replay_(part, [step])
