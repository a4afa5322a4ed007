"""A model whose weights are moved without being written.

A `TorchFunctionMode` sees every torch function that is given a parameter, recognises the parameter by identity (or a view of
it by its storage), and hands the function `weight + scale * z` instead. Linear layers are served in row panels of a reused
scratch, embeddings row by row; whatever else consumes a parameter gets a moved copy of that one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blockzo import ops
from blockzo.flops import count_flops
from blockzo.noise import Noise, stream_id
from blockzo.ops.params import check_finite, targets

PANEL_BYTES = 16 << 20
"""A panel this small stays in a last-level cache between the kernel that makes it and the GEMM that reads it."""


@dataclass(frozen=True)
class Move:
    """How one parameter is moved: `tensor + scale * z(noise, stream, direction)`."""

    name: str
    tensor: Tensor
    noise: Noise
    direction: int
    scale: float

    def copy(self) -> Tensor:
        source = self.tensor if self.tensor.is_contiguous() else self.tensor.contiguous()
        return ops.perturbed_copy(source, self.noise, self.name, self.scale, self.direction).view(self.tensor.shape)


# Reading these from a parameter says nothing of its values.
_FACTS = frozenset(
    "size dim stride numel nelement ndimension is_contiguous is_floating_point is_complex storage_offset element_size "
    "get_device __len__ __hash__ is_inference has_names is_same_size __repr__ __format__ is_pinned is_shared "
    "is_signed requires_grad_ register_hook is_set_to _is_view __deepcopy__".split()
)
_DATA_PROPERTIES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
_ADDRESSES = frozenset(("data_ptr", "untyped_storage", "storage", "_typed_storage", "share_memory_"))


class PerturbedForward(TorchFunctionMode):
    """Runs torch functions on moved weights, and counts FLOPs and the parameters that were used.

    Args:
        moves: the parameters to move; all others are used as they are.
        barred: parameters that must not be used here, id -> reason (a later block's, see `blocks.py`).
    """

    def __init__(self, moves: Sequence[Move] = (), barred: Mapping[int, str] | None = None) -> None:
        super().__init__()
        self.moves = {id(move.tensor): move for move in moves}
        self.by_storage: dict[int, list[Move]] = {}
        for move in moves:
            self.by_storage.setdefault(move.tensor.untyped_storage().data_ptr(), []).append(move)
        self.barred = barred or {}
        self.used: set[int] = set()
        self.flops = 0
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_fact(func):
            return func(*args, **kwargs)
        self._look(args, kwargs)
        special = _SPECIAL.get(func) if self.moves else None
        result = NotImplemented if special is None else special(self, *args, **kwargs)
        if result is NotImplemented:
            if self.moves and (_any_moved(self, args) or _any_moved(self, tuple(kwargs.values()))):
                name = getattr(func, "__name__", "")
                if name in _ADDRESSES or "out" in kwargs or (name.endswith("_") and not name.startswith("__")):
                    self._refuse(name, args)
                result = func(*_moved_all(self, args), **{k: _moved_all(self, v) for k, v in kwargs.items()})
            else:
                result = func(*args, **kwargs)
        self.flops += count_flops(func, args, kwargs, result)
        return result

    def find(self, tensor: Any) -> Move | None:
        """The move of a parameter, recognised by identity."""
        return self.moves.get(id(tensor))

    def moved(self, tensor: Any) -> Any:
        """`tensor`, or a moved copy of it where it is a moved parameter or shares storage with one."""
        if not isinstance(tensor, Tensor):
            return tensor
        move = self.moves.get(id(tensor))
        if move is not None:
            return move.copy()
        owner = self._owner(tensor)
        if owner is None:
            return tensor
        whole = owner.copy()
        offset = tensor.storage_offset() - owner.tensor.storage_offset()
        return torch.as_strided(whole, tensor.shape, tensor.stride(), offset)

    def _owner(self, tensor: Tensor) -> Move | None:
        """The moved parameter that a view made before this forward looks into."""
        if tensor.layout != torch.strided or not tensor.numel():
            return None
        found = self.by_storage.get(tensor.untyped_storage().data_ptr())
        if not found:
            return None
        first = tensor.storage_offset()
        last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        for move in found:
            begin = move.tensor.storage_offset()
            inside = begin <= first and last < begin + move.tensor.numel()
            if inside and move.tensor.is_contiguous() and move.tensor.dtype == tensor.dtype:
                return move
            overlaps = first < begin + move.tensor.numel() and begin <= last
            if overlaps or not move.tensor.is_contiguous():
                raise ValueError(
                    f"a view of shape {tuple(tensor.shape)} shares memory with parameter {move.name!r} but is not inside it; "
                    'its moved value is not defined: use evaluate="in_place" for this model'
                )
        return None

    def scratch(self, like: Tensor, numel: int) -> Tensor:
        key = (like.device, like.dtype)
        held = self._scratch.get(key)
        if held is None or held.numel() < numel:
            held = torch.empty(numel, dtype=like.dtype, device=like.device)
            self._scratch[key] = held
        return held[:numel]

    def _look(self, args: Any, kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, nn.Parameter):
                self.used.add(id(value))
                if id(value) in self.barred:
                    raise ValueError(self.barred[id(value)])
            elif isinstance(value, (list, tuple)):
                self._look(value, {})

    def _refuse(self, name: str, args: tuple[Any, ...]) -> None:
        names = [move.name for move in map(self.find, args) if move is not None]
        raise ValueError(
            f"the model calls {name!r} on parameter {', '.join(names) or '(in a list)'} inside a perturbed forward, which would "
            'write the weight or read its memory by address; use evaluate="in_place" for this model'
        )


def is_fact(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _DATA_PROPERTIES
    return name in _FACTS


def _any_moved(mode: PerturbedForward, values: Any) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if id(value) in mode.moves or (mode.by_storage and mode._owner(value) is not None):
                return True
        elif isinstance(value, (list, tuple)) and _any_moved(mode, value):
            return True
    return False


def _moved_all(mode: PerturbedForward, values: Any) -> Any:
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_moved_all(mode, value) for value in values))
    if isinstance(values, (list, tuple)):
        return type(values)(_moved_all(mode, value) for value in values)
    return mode.moved(values)


def _linear(mode: PerturbedForward, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    move = mode.find(weight)
    if move is None or not weight.is_contiguous() or weight.dim() != 2 or torch.is_autocast_enabled(weight.device.type):
        return NotImplemented
    bias = mode.moved(bias)
    rows, width = weight.shape
    step = max(1, PANEL_BYTES // max(1, width * weight.element_size()))
    flat = input.reshape(-1, width)
    if step >= rows:
        panel = mode.scratch(weight, weight.numel()).view(rows, width)
        ops.perturbed_copy(weight, move.noise, move.name, move.scale, move.direction, 0, panel)
        return F.linear(input, panel, bias)
    out = torch.empty(flat.shape[0], rows, dtype=input.dtype, device=input.device)
    for first in range(0, rows, step):
        part = weight[first : first + step]
        panel = mode.scratch(weight, part.numel()).view(part.shape)
        ops.perturbed_copy(part, move.noise, move.name, move.scale, move.direction, first * width, panel)
        target = out[:, first : first + step]
        if bias is None:
            torch.mm(flat, panel.t(), out=target)
        else:
            torch.addmm(bias[first : first + step], flat, panel.t(), out=target)
    return out.view(*input.shape[:-1], rows)


def _rows(mode: PerturbedForward, weight: Any, rows: Any) -> Any:
    move = mode.find(weight)
    if move is None or not isinstance(rows, Tensor) or rows.is_floating_point() or rows.dtype == torch.bool:
        return NotImplemented
    if weight.dim() != 2 or not weight.is_contiguous() or rows.numel() > weight.shape[0]:
        return NotImplemented
    if rows.numel():
        rows = torch.where(rows < 0, rows + weight.shape[0], rows)
    return ops.perturbed_rows(weight, rows, move.noise, move.name, move.scale, move.direction)


def _embedding(
    mode: PerturbedForward,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    # a lookup of more rows than the table has is cheaper as one moved copy of the table
    return NotImplemented if max_norm is not None else _rows(mode, weight, input)


def _index_select(mode: PerturbedForward, input: Any, dim: int, index: Any) -> Any:
    return _rows(mode, input, index) if dim == 0 else NotImplemented


_SPECIAL: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.Tensor.__getitem__: _rows,
    torch.Tensor.index_select: _index_select,
    torch.index_select: _index_select,
}


@contextmanager
def perturbed(
    model: nn.Module, noise: Noise, directions: Sequence[int] = (0,), scales: Sequence[float] = (1e-3,)
) -> Iterator[PerturbedForward]:
    """Inside the block, forward passes of `model` see `w + scale * z` for every trainable parameter; no weight is written.

    Args:
        model: any module; parameters with `requires_grad` are moved, under their canonical names.
        directions, scales: one of each.

    Yields:
        The mode; its `flops` counts what ran inside.

    Raises:
        ValueError: a parameter is unsupported, or the model writes a parameter or reads its memory by address.
    """
    if len(directions) != 1 or len(scales) != 1:
        raise ValueError(
            f"directions has {len(directions)} entries and scales {len(scales)}; this version moves along one direction at a "
            "time: pass one of each"
        )
    check_finite("scale", float(scales[0]))
    moves = [Move(t.name, t.tensor, noise, int(directions[0]), float(scales[0])) for t in targets(model)]
    with torch.no_grad(), PerturbedForward(moves) as mode:
        yield mode


__all__ = ["PANEL_BYTES", "Move", "PerturbedForward", "perturbed", "stream_id"]
