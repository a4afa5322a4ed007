"""Parameters inside `torch.func` and autograd of the model's own.

A transform wraps what it is given, so a parameter is no longer known by its identity or memory, and a derivative needs functions
that torch can differentiate. There each function gets a moved copy: batched as the parameter was, and the parameter plus a
constant where a derivative may be asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from blockzo.perturb import batched
from blockzo.perturb.parameters import Parameter
from blockzo.perturb.values import MovedValues


def base(mode: MovedValues, value: Any) -> tuple[Parameter, int] | None:
    """The moved parameter that a tensor is or looks into, wrapped by transforms or not, and where in it the tensor begins."""
    if not isinstance(value, Tensor) or not batched.is_wrapped(value) or _is_activation(mode, value):
        return mode.find(value)
    every = batched.layers(value)
    found = mode.find(every[-1])
    if found is not None and any(map(batched.is_functional, every)):
        raise ValueError(
            f"parameter {found[0].name!r} is given to torch.func.functionalize inside a perturbed forward, which cannot follow "
            'it there; leave functionalize out, or use evaluate="in_place" for this model'
        )
    return found


def derives() -> bool:
    """May a derivative be asked of what is made here, by autograd?"""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def at_work(mode: MovedValues, values: Iterable[Any]) -> bool:
    """Is one of these wrapped by a transform of the model's own?"""
    for value in values:
        if isinstance(value, Tensor):
            if batched.is_wrapped(value) and not _is_activation(mode, value):
                if _may_be_derived(value) or base(mode, value) is not None:
                    return True
        elif isinstance(value, (list, tuple)) and at_work(mode, value):
            return True
    return False


def moved(mode: MovedValues, value: Any) -> Any:
    """The moved value of a parameter as the transforms at work see it; anything else as it is."""
    found = base(mode, value)
    if found is None:
        return value
    plain, derived = batched.layers(value)[-1], _may_be_derived(value)
    with temporarily_clear_interpreter_stack(), torch.no_grad():
        copies = mode.copies(plain, found)
        if derived:
            copies = copies - _finite(plain.detach())
        result = copies[0] if mode.level is None else batched.lift(copies, mode.level)
    result = batched.wrap_like(value, result)
    return _finite(value) + result if derived else result


def _finite(value: Tensor) -> Tensor:
    """Without the NaN of `hidden.py`, which the constant stands for; others are in the constant too."""
    return torch.nan_to_num(value, nan=0.0, posinf=math.inf, neginf=-math.inf)


def _may_be_derived(value: Tensor) -> bool:
    return derives() or any(
        batched.is_wrapped(layer) and not batched.is_batched(layer) for layer in batched.layers(value)
    )


def _is_activation(mode: MovedValues, value: Tensor) -> bool:
    """Of the groups that run together: no parameter is wrapped so."""
    return mode.level is not None and batched.is_batched(value) and batched.level_of(value) == mode.level
