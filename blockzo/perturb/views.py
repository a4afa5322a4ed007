"""Views of parameters that a model made before its forward, which a compiled forward cannot see for what they are."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_models: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()


def remember(model: nn.Module) -> int:
    """A number for `hidden_view`."""
    _models[id(model)] = model
    return id(model)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def hidden_view(number: int) -> str:
    """The name of a tensor of the model that shares memory with a trainable parameter and is none; "" where there is none."""
    model = _models[number]
    moved = {id(p): p.untyped_storage().data_ptr() for p in model.parameters() if p.requires_grad and p.numel()}
    storages = set(moved.values())
    for place, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers, **module._parameters}.items():
            if isinstance(value, Tensor) and id(value) not in moved and value.layout is torch.strided:
                if (
                    value.numel()
                    and not is_traceable_wrapper_subclass(value)
                    and value.untyped_storage().data_ptr() in storages
                ):
                    return f"{place}.{name}" if place else name
    return ""
