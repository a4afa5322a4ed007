"""A device that is not there: tensors of `privateuseone` that compute on the CPU, and operations that refuse to mix the two.

What a GPU would refuse is refused: an operation on a tensor of the device and one of the CPU (but a scalar, or an
index, as on CUDA), and NumPy's view of a tensor of the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "privateuseone"
DEVICE = torch.device(NAME, 0)
COPIES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"}
MAY_INDEX = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
"""CUDA takes indices of the CPU in these."""


class Far(torch.Tensor):
    """A tensor of the device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.inner!r})"


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the CPU, and its result where the operation's result would be.

    Raises:
        RuntimeError: tensors of both devices.
    """
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    near = [t for t in tensors if not isinstance(t, Far) and t.dim() and t.device.type == "cpu"]
    far = [t for t in tensors if isinstance(t, Far)]
    if far and near and name not in COPIES:
        if name not in MAY_INDEX or not isinstance(args[0], Far):
            raise RuntimeError(f"{name}: tensors on {DEVICE} and on the CPU, expected one device")
    device = kwargs.get("device")
    kept = {**kwargs, "device": torch.device("cpu")} if device is not None else dict(kwargs)
    kept.pop("pin_memory", None)
    found = func(*tree_map(_inner, args), **tree_map(_inner, kept))
    if name == "aten::copy_":
        return args[0]
    there = bool(far) if device is None else torch.device(device).type == NAME
    if name == "aten::_copy_from":
        return args[1]
    if not there or name == "aten::_local_scalar_dense":
        return found
    written = {id(t.inner): t for t in far}

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return written[id(value)] if id(value) in written else Far(value)

    return tree_map(placed, found)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Far) else value


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    return run(func, args, kwargs)


_setup_privateuseone_for_python_backend()
LIBRARY = torch.library.Library("_", "IMPL")
LIBRARY.fallback(_fallback, "PrivateUse1")


def put(model: Any, device: torch.device, *others: Any) -> None:
    """Moves a model so that a tied weight stays one, as it does on the way to a GPU."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


_tensor = torch.tensor


def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """`torch.tensor`, which backends in Python do not have."""
    made = _tensor(data, **options)
    return made if device is None else made.to(device)
