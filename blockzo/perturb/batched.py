"""Tensors that differ from group to group, as `torch.vmap` carries them: taken apart and put together again.

The C functions are those that `torch.vmap` itself is made of; they are asked for here and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

_functorch = torch._C._functorch


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
