"""The mode under torch.compile: dynamo traces these few lines for every function of the model.

Seeds, directions and scales are tensors of the graph, so that others compile nothing anew. A parameter is known by its identity
alone: a view is taken of a moved copy, and a view that the model made before the forward is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockzo.perturb.kinds import kind_of
from blockzo.perturb.parameters import Parameter
from blockzo.perturb.values import MovedValues
from blockzo.perturb.views import hidden_view
from blockzo.perturb.wide import CASTS, PRODUCTS, in_float32


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _kind(func: Callable[..., Any]) -> str:
    return kind_of(func).name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _goes_wide(func: Callable[..., Any]) -> bool:
    return func in PRODUCTS or func in CASTS


def call(mode: MovedValues, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """One function of the model on moved weights."""
    kind = _kind(func)
    if kind == "FACT" or not _any_moved(mode, (*args, *kwargs.values())):
        return func(*args, **kwargs)
    if mode.entered or mode.index.model is None:
        # what is compiled would run under the mode, and some of it be moved twice
        raise ValueError(
            "a compiled function was called inside a perturbed forward; make `moved = blockzo.perturbed(...)` before, hand it to "
            "the function and enter it there (`with moved:`), or do not compile"
        )
    if not mode.tables:
        raise ValueError(
            "the noise has scales or a low rank, which a compiled forward does not make; do not compile, or use noise of "
            "full rank (rank=None) without per_weight"
        )
    if torch.is_grad_enabled():
        raise ValueError("a perturbed forward has no gradient; compile and call it under torch.no_grad()")
    hidden = hidden_view(mode.index.model)
    if hidden:
        raise ValueError(
            f"{hidden!r} of the model is a view of a parameter made before the forward, which a compiled forward would not "
            "move; make the view inside the forward, or do not compile"
        )
    if kind == "WRITES" or kind == "ADDRESS" or "out" in kwargs:
        raise ValueError(
            f"the model calls {func} on a parameter inside a perturbed forward, which would write the weight or read its memory "
            'by address; use evaluate="in_place" for this model'
        )
    result = _linear(mode, *args, **kwargs) if func is F.linear else NotImplemented
    if func is F.embedding:
        result = _embedding(mode, *args, **kwargs)
    if result is NotImplemented and mode.linear_moved == "float32":
        result = _not_rounded(mode, func, kind, args, kwargs)
    if result is not NotImplemented:
        return result
    return func(*_each(mode, args), **{name: _moved(mode, value) for name, value in kwargs.items()})


def _not_rounded(
    mode: MovedValues, func: Callable[..., Any], kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Products of matrices that stay in float32; a view of such a one would be rounded."""

    def concerns(value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype == torch.float32:
            return False
        return mode.index.by_id.get(id(value)) is not None

    def copied(value: Any) -> Any:
        return _copy(mode, mode.index.by_id[id(value)], value, torch.float32)

    if _goes_wide(func):
        return in_float32(func, args, kwargs, concerns, copied, lambda value: _moved(mode, value))
    if kind == "VIEW" and args and concerns(args[0]):
        raise ValueError(
            f"the model takes a view of parameter {mode.index.by_id[id(args[0])].name!r}, which a compiled forward takes of a "
            'rounded copy; expected moved="rounded" or "auto" in place of "float32", or do not compile'
        )
    return NotImplemented


def _linear(mode: MovedValues, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    parameter = mode.index.by_id.get(id(weight))
    if parameter is None or mode.index.by_id.get(id(input)) is not None:
        return NotImplemented
    whole = parameter.contiguous and weight.dim() == 2 and input.dim() > 0
    # copies of small ones, made together, are rounded
    small = parameter.small and (mode.linear_moved != "float32" or weight.dtype == torch.float32)
    if small or not whole or input.dtype != weight.dtype or _autocast(weight):
        return NotImplemented
    step = mode.tables[parameter.table]
    out: Tensor = torch.ops.blockzo.perturbed_linear.packed(
        input.reshape(1, -1, weight.shape[1]), weight, _moved(mode, bias), 0, parameter.stream, *step, mode.linear_moved
    )
    return out.view(*input.shape[:-1], weight.shape[0])


def _autocast(weight: Tensor) -> bool:
    return torch.is_autocast_enabled(weight.device.type)


def _embedding(
    mode: MovedValues,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    parameter = mode.index.by_id.get(id(weight))
    if parameter is None or parameter.small or not parameter.contiguous or weight.dim() != 2 or max_norm is not None:
        moved = _moved(mode, weight)
        return F.embedding(input, moved, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    flat = input.reshape(-1).to(torch.int64)
    torch._assert_async(((flat >= 0) & (flat < weight.shape[0])).all())
    out: Tensor = torch.ops.blockzo.perturbed_rows.packed(weight, flat, parameter.stream, *mode.tables[parameter.table])
    return out.view(*input.shape, weight.shape[1])


def _any_moved(mode: MovedValues, values: Any) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if mode.index.by_id.get(id(value)) is not None:
                return True
        elif isinstance(value, (list, tuple)) and _any_moved(mode, value):
            return True
    return False


def _each(mode: MovedValues, values: Any) -> Any:
    return type(values)([_moved(mode, value) for value in values])


def _moved(mode: MovedValues, value: Any) -> Any:
    if isinstance(value, Tensor):
        parameter = mode.index.by_id.get(id(value))
        return value if parameter is None else _copy(mode, parameter, value)
    return _each(mode, value) if isinstance(value, (list, tuple)) else value


def _copy(mode: MovedValues, parameter: Parameter, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    source = value if parameter.contiguous else value.contiguous()
    out = torch.empty(value.shape, dtype=dtype or value.dtype, device=value.device)
    torch.ops.blockzo.perturbed_copy.packed(out, source, 0, parameter.stream, *mode.tables[parameter.table])
    return out
