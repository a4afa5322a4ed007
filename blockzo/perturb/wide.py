"""Products of moved 16-bit matrices that are not to be rounded (`moved="float32"`) and that no kernel takes: views of other
forms, batches of columns, factors beside 1, two moved matrices. They get float32 copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PRODUCTS = frozenset(
    (
        F.linear,
        *(torch.addmm, torch.matmul, torch.mm, torch.mv),
        *(Tensor.addmm, Tensor.matmul, Tensor.mm, Tensor.mv, Tensor.__matmul__, Tensor.__rmatmul__),
    )
)
CASTS = frozenset((Tensor.to, Tensor.type, Tensor.float, Tensor.double))
"""Functions that hand on what they are given, in another dtype."""


def in_float32(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    concerns: Callable[[Any], bool],
    copied: Callable[[Any], Any],
    moved: Callable[[Any], Any],
) -> Any:
    """The function on float32 values, its result rounded once; NotImplemented where it is given no such matrix.

    Args:
        func: one of `PRODUCTS` or `CASTS`.
        concerns: is it a moved matrix of 16 bits that is not to be rounded?
        copied: the moved values of such a one, in float32.
        moved: anything -> what it is here, rounded.
    """
    given = {**kwargs}
    out = given.pop("out", None)
    read = args[:1] if func in CASTS else (*args, *given.values())
    tensors = [value for value in read if isinstance(value, Tensor)]
    # torch refuses products of two dtypes, and it is to be heard
    if not any(map(concerns, tensors)) or any(value.dtype != tensors[0].dtype for value in tensors):
        return NotImplemented

    def wide(value: Any) -> Any:
        if concerns(value):
            return copied(value)
        return moved(value).float() if isinstance(value, Tensor) else value

    if func in CASTS:
        dtype = func(args[0].new_empty(0), *args[1:], **given).dtype
        return func(wide(args[0]), *args[1:], **given).to(dtype)
    result = func(*map(wide, args), **{name: wide(value) for name, value in given.items()}).to(tensors[0].dtype)
    return result if out is None else out.copy_(result)
