"""Tensors that differ from group to group, as `torch.vmap` carries them, and all that `torch.func` wraps: taken apart and put
together again.

The C functions are those that `torch.vmap` itself is made of; they are asked for here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_functorch = torch._C._functorch


@contextmanager
def quiet_fallbacks() -> Iterator[None]:
    """Without torch's warnings of functions that `torch.vmap` runs group by group, which is right."""
    shown = torch._C._debug_only_are_vmap_fallback_warnings_enabled()  # type: ignore[attr-defined]
    _functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _functorch._set_vmap_fallback_warning_enabled(shown)  # type: ignore[attr-defined]


def is_batched(tensor: Tensor) -> bool:
    found: bool = _functorch.is_batchedtensor(tensor)
    return found


def level_of(index: Tensor) -> int:
    """The nesting level of the `torch.vmap` whose argument this is."""
    level: int = _functorch.maybe_get_level(index)
    return level


def lower(tensor: Tensor, level: int) -> tuple[Tensor, bool]:
    """The plain tensor, groups in dimension 0, and True; or the tensor itself and False where all groups share it."""
    if is_batched(tensor) and _functorch.maybe_get_level(tensor) == level:
        plain: Tensor = _functorch.get_unwrapped(tensor)
        return plain.movedim(_functorch.maybe_get_bdim(tensor), 0), True
    return tensor, False


def lift(tensor: Tensor, level: int) -> Tensor:
    """A tensor whose dimension 0 is the groups, as one that each group sees its own part of."""
    lifted: Tensor = _functorch._add_batch_dim(tensor, 0, level)
    return lifted


def is_wrapped(tensor: Tensor) -> bool:
    """By `torch.vmap`, or by a derivative of `torch.func`?"""
    found: bool = _functorch.is_functorch_wrapped_tensor(tensor)
    return found


def transforming() -> bool:
    """Is a transform of `torch.func` at work, which may have wrapped what a function is given?"""
    return _functorch.peek_interpreter_stack() is not None


def layers(tensor: Tensor) -> list[Tensor]:
    """The tensor as each transform at work sees it, inside first; the last is what the outermost was given."""
    found = [tensor]
    while is_wrapped(found[-1]):
        found.append(_functorch.get_unwrapped(found[-1]))
    return found


def is_functional(tensor: Tensor) -> bool:
    """Does `torch.func.functionalize` hold it?"""
    found: bool = _functorch.is_functionaltensor(tensor)
    return found


def wrap_like(pattern: Tensor, plain: Tensor) -> Tensor:
    """`plain`, of the shape of the last of `layers(pattern)`, given to the same `torch.vmap`s along the same dimensions."""
    for layer in reversed(layers(pattern)):
        if is_batched(layer):
            plain = _functorch._add_batch_dim(
                plain, _functorch.maybe_get_bdim(layer), _functorch.maybe_get_level(layer)
            )
    return plain
