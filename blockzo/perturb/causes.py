"""Why evaluations failed in a group: memory, what `torch.vmap` cannot run, or nothing that a group is to blame for."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from enum import Enum, auto
from types import TracebackType
from typing import TypeVar

import torch

from blockzo.perturb.passes import PathChanged


class Cause(Enum):
    MEMORY = auto()
    """They did not fit; fewer may."""
    BATCHING = auto()
    """torch.vmap cannot run this code, whatever the batch."""
    REFUSED = auto()
    """The model, the loss or the device says no; it would alone."""
    UNKNOWN = auto()
    """Whether an evaluation runs alone will tell."""


BATCHING_WORDS = (
    "vmap",
    "functorch",
    "Batching rule",
    "BatchedTensor",
    "Tensor that doesn't have storage",
    # a tensor that all groups share is written in place with what each has its own of
    "doesn't match the broadcast shape",
)
"""What torch says of it (torch 2.5 to 2.14): of `.item()`, branches on values, shapes that depend on values, functions without a
batching rule, random numbers, memory read by address. A mistake of the user's in the same words fails alone too.
"""
OVER = (
    "maybe_level.has_value()",
    "may have escaped from inside a function being vmapped",
    "dead wrapper",
    "no longer active",
)
"""What torch says where a tensor of a group is read after the group has run."""
MEMORY_WORDS = ("DefaultCPUAllocator", "not enough memory", "out of memory")
DEVICE_WORDS = ("CUDA error", "HIP error")
LAUNCHERS = ("triton", "blockzo.ops.backends.gpu")
"""Packages in which kernels are compiled and started. What fails there was never about how evaluations are batched: running them
alone would hide it.
"""


def cause_of(error: BaseException) -> Cause:
    chain = list(_chain(error))
    if any(isinstance(one, (torch.OutOfMemoryError, MemoryError)) or _says(one, MEMORY_WORDS) for one in chain):
        return Cause.MEMORY
    if isinstance(error, PathChanged) or _says(error, DEVICE_WORDS):
        return Cause.REFUSED
    # a library may catch torch's error and raise its own
    if any(_says(one, BATCHING_WORDS) or _source(one)[0].startswith("torch._functorch") for one in chain):
        return Cause.BATCHING
    module, stated = _source(error)
    if any(_through(one, LAUNCHERS) for one in chain):
        return Cause.REFUSED
    if stated and module.partition(".")[0] not in ("torch", "blockzo"):
        return Cause.REFUSED
    return Cause.UNKNOWN


def refused_here(error: BaseException) -> bool:
    """Was it a sentence of this package's own, not what torch or the model said?"""
    module, stated = _source(error)
    return stated and module.partition(".")[0] == "blockzo"


def is_left_over(error: BaseException) -> bool:
    """Did it come of a tensor that was kept from a group?"""
    return any(_says(one, OVER) for one in _chain(error))


E = TypeVar("E", bound=BaseException)


def found_in(error: BaseException, kind: type[E]) -> E | None:
    """The error of this kind that it is or came of."""
    return next((one for one in _chain(error) if isinstance(one, kind)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _through(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Whether code of one of these packages was at work when the error came."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if any(module == package or module.startswith(f"{package}.") for package in packages):
            return True
        trace = trace.tb_next
    return False


def _source(error: BaseException) -> tuple[str, bool]:
    """The module whose code an error comes from, and whether a `raise` or `assert` in it made the error, not a function in C."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", False
    code = trace.tb_frame.f_code.co_code
    stated = 0 <= trace.tb_lasti < len(code) and code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return str(trace.tb_frame.f_globals.get("__name__", "")), stated
