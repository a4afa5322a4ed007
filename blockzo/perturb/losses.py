"""Losses that a step looks at, and the state that a model is in while it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LossFunction = Callable[[nn.Module, Any], Tensor]


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
