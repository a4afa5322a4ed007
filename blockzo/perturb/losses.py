"""Losses that a step looks at, and the state that a model is in while it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LossFunction = Callable[[nn.Module, Any], Tensor]


def as_tensor(value: Any) -> Any:
    """A loss that is a Python number or an array (NumPy's, or whatever NumPy takes for one) as a tensor; else what it is.

    Such a loss cannot come from a batched evaluation: none lets its numbers out to Python. So its evaluations run one after the
    other, each with the model as it is.

    Raises:
        ValueError: it is a tensor of complex numbers, or of truths.
    """
    if isinstance(value, Tensor) and (value.is_complex() or value.dtype is torch.bool):
        raise ValueError(
            f"loss_fn returned a tensor of {value.dtype}; expected real numbers, such as its .real or .float()"
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor) and hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in "fiu":
            return torch.from_numpy(array.astype(np.float64))
    return value


def hugging_face_loss(model: nn.Module, batch: Any) -> Tensor:
    """`model(**batch).loss`."""
    loss: Tensor = model(**batch).loss
    return loss


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and no autograd: sibling evaluations must differ by their weights alone."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
