"""Which backend serves which tensor: compiled kernels for CPU tensors where they are installed, Triton and CUDA kernels for those
of a GPU, else the torch reference.

Environment: BLOCKZO_BACKEND=reference leaves the kernels aside; BLOCKZO_REQUIRE_NATIVE=1 makes their absence an error.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from blockzo.ops.backends import reference
from blockzo.ops.params import Target
from blockzo.ops.steps import Step


@cache
def native() -> ModuleType | None:
    """The compiled kernels, or None; looked for once, at first use, so that importing blockzo cannot fail."""
    if os.environ.get("BLOCKZO_BACKEND") == "reference":
        return None
    try:
        from blockzo.ops.backends import cpu as kernels
    except ImportError as error:
        text = f"the compiled kernels of blockzo cannot be loaded ({error})"
        if os.environ.get("BLOCKZO_REQUIRE_NATIVE", "0") not in ("", "0"):
            raise ImportError(
                f"{text} and BLOCKZO_REQUIRE_NATIVE is set; install a C++ compiler and blockzo again"
            ) from error
        warnings.warn(
            f"{text}; the torch reference serves instead, many times slower: install a C++ compiler and blockzo again",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return kernels


@cache
def gpu() -> ModuleType | None:
    """The kernels for CUDA tensors, or None where triton is missing, which is said once."""
    if os.environ.get("BLOCKZO_BACKEND") == "reference":
        return None
    try:
        from blockzo.ops.backends.gpu import kernels
    except ImportError as error:
        warnings.warn(
            f"the GPU kernels of blockzo cannot be loaded ({error}); the torch reference serves instead, many times slower: "
            "pip install triton",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return kernels


def for_tensor(tensor: Tensor) -> ModuleType:
    if tensor.device.type == "cpu":
        return native() or reference
    if tensor.device.type == "cuda" and torch.version.hip is None:
        return gpu() or reference
    return reference


def split(found: Iterable[Target]) -> Iterator[tuple[ModuleType, list[Target]]]:
    """Groups targets by the backend that serves them, each group in the given order."""
    groups: dict[ModuleType, list[Target]] = {}
    for target in found:
        groups.setdefault(for_tensor(target.tensor), []).append(target)
    yield from groups.items()


def move(found: Iterable[Target], step: Step, kind: str) -> None:
    """`kind`: "perturb", "shift" or "update"."""
    for backend, part in split(found):
        if kind == "perturb":
            backend.perturb_(part, step)
        elif kind == "shift":
            backend.shift_(part, step)
        else:
            backend.replay_(part, [step])
