"""What the perturbed forward knows of torch functions: where a moved weight is consumed, and how groups run as one batch.

A handler takes the mode and the function's own arguments, and returns NotImplemented where the case is not one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from blockzo.ops import low_rank as parts
from blockzo.perturb import batched
from blockzo.perturb.flops import FORMULAS, Formula
from blockzo.perturb.kinds import Kind, kind_of
from blockzo.perturb.moves import Moves
from blockzo.perturb.parameters import Parameter
from blockzo.perturb.values import MovedValues

Handler = Callable[..., Any]

PANEL_BYTES = 16 << 20
"""A panel this small stays in a last-level cache between the kernel that makes it and the GEMM that reads it."""


def _linear(mode: MovedValues, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    found = mode.find(weight)
    if found is None:
        return _shared_linear(mode, input, weight, bias)
    return _product(mode, input, found, weight, bias)


def _product(
    mode: MovedValues, x: Tensor, found: tuple[Parameter, int], weight: Tensor, bias: Tensor | None = None
) -> Any:
    """x @ weight.T + bias, where `weight` [N, K] is a large moved parameter or a view of one."""
    parameter, start = found
    move = mode.moves[parameter.block]
    # copies of small ones, made together, are rounded
    if not parameter.contiguous or (parameter.small and (move.moved != "float32" or weight.dtype == torch.float32)):
        return NotImplemented
    shape, given = weight.shape, x.shape
    if len(shape) != 2 or not given or given[-1] != shape[1] or x.dtype != weight.dtype:
        return NotImplemented
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(weight.device.type):
        return NotImplemented
    stack, moved_bias = mode.lower_all(x), None if bias is None else _bias(mode, bias)
    if stack is None or moved_bias is NotImplemented:
        return NotImplemented
    low_rank = move.low_rank(parameter)
    if low_rank and move.moved == "rounded" and weight.dtype != torch.float32:
        out = _by_copies(mode, stack, found, weight, moved_bias)
    elif weight is parameter.tensor:
        out = move.linear(stack, weight, moved_bias, parameter, start)
    elif low_rank:
        if not parts.is_part(weight, start, parameter.tensor.shape[1]):
            return NotImplemented
        out = move.linear(stack, weight, moved_bias, parameter, start)
    elif weight.stride(1) == 1 or shape[1] == 1:
        out = move.linear(stack, weight, moved_bias, parameter, start)
    elif weight.t().is_contiguous():
        out = _by_panels(mode, stack, move, parameter, start, weight.t(), moved_bias)
    else:
        return NotImplemented
    return mode.lift(out)


def _by_copies(
    mode: MovedValues, x: Tensor, found: tuple[Parameter, int], weight: Tensor, bias: Tensor | None
) -> Tensor:
    """x [groups, ..., K] by moved copies of `weight` [N, K], for noise that no product makes rounded weights of."""
    copies = mode.copies(weight, found)
    lines = [None] * mode.groups if bias is None else bias.view(-1, len(weight)).expand(mode.groups, -1)
    rows = [x] if mode.level is None else x
    outs = [F.linear(own, copy, line) for own, copy, line in zip(rows, copies, lines, strict=True)]
    return outs[0] if mode.level is None else torch.stack(outs)


def _by_panels(
    mode: MovedValues, x: Tensor, move: Moves, parameter: Parameter, start: int, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """x [groups, ..., K] times the moved `weight` [K, N], a few of its rows at a time through a reused scratch."""
    width, columns = weight.shape
    step = max(1, PANEL_BYTES // max(1, columns * weight.element_size()))
    # partial sums of several panels are not rounded to 16 bits
    dtype = weight.dtype if step >= width and move.moved != "float32" else torch.float32
    held = weight.dtype if move.moved == "rounded" else dtype
    flat = x.reshape(move.groups, -1, width).to(dtype)
    out = torch.zeros(*flat.shape[:2], columns, dtype=dtype, device=x.device)
    if bias is not None:
        out += bias.unsqueeze(-2)
    for first in range(0, width, step):
        part = weight[first : first + step]
        panel = mode.scratch(part, part.numel(), held).view(part.shape)
        for group in range(move.groups):
            move.copy(panel, part, parameter, start + first * columns, group)
            out[group].addmm_(flat[group, :, first : first + step], panel.to(dtype))
    return out.to(x.dtype).view(*x.shape[:-1], columns)


def _bias(mode: MovedValues, bias: Tensor | None) -> Any:
    """None, [N] or [groups, N], moved."""
    if bias is None:
        return None
    found = mode.find(bias)
    if found is not None:
        copies = mode.copies(bias, found)
        return copies if bias.dim() == 1 else NotImplemented
    lowered = mode.lower(bias)
    return NotImplemented if lowered is None or bias.dim() != 1 else lowered[0]


def _shared_linear(mode: MovedValues, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """A linear layer with one weight for all groups: one product of all their rows."""
    if mode.level is None or batched.is_batched(weight) or not input.dim():
        return NotImplemented
    stack, moved_bias = mode.lower(input), _bias(mode, bias)
    if stack is None or moved_bias is NotImplemented:
        return NotImplemented
    own_bias = moved_bias is not None and moved_bias.dim() == 2
    if not stack[1] and not own_bias:
        return NotImplemented
    if not own_bias:
        return mode.lift(F.linear(stack[0], weight, moved_bias))
    out = F.linear(stack[0], weight)
    rows = (1,) * (input.dim() - 1)
    return mode.lift((out if stack[1] else out.unsqueeze(0)) + moved_bias.view(mode.groups, *rows, -1))


def _matmul(mode: MovedValues, input: Tensor, other: Tensor) -> Any:
    found = mode.find(other)
    if found is not None:
        return _product(mode, input, found, other.t()) if other.dim() == 2 else NotImplemented
    found = mode.find(input)
    if found is None or input.dim() != 2 or other.dim() != 2:
        return NotImplemented
    out = _product(mode, other.t(), found, input)
    return out if out is NotImplemented else out.t()


def _rmatmul(mode: MovedValues, input: Tensor, other: Tensor) -> Any:
    return _matmul(mode, other, input)


def _addmm(mode: MovedValues, input: Tensor, mat1: Tensor, mat2: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    found = mode.find(mat2)
    if found is None or mat2.dim() != 2 or (beta, alpha) != (1, 1):
        return NotImplemented
    return _product(mode, mat1, found, mat2.t(), input)


def _rows(mode: MovedValues, weight: Any, rows: Any) -> Any:
    """weight[rows], noise made for these rows only."""
    found = mode.find(weight)
    if found is None or not isinstance(rows, Tensor) or rows.is_floating_point() or rows.dtype == torch.bool:
        return NotImplemented
    parameter, start = found
    lowered = mode.lower(rows)
    if lowered is None or parameter.small or weight.dim() != 2 or not weight.is_contiguous():
        return NotImplemented
    width = weight.shape[1]
    if not parameter.contiguous or start % width or parameter.tensor.numel() % width:
        return NotImplemented
    if rows.numel() > weight.shape[0]:
        # more lookups than rows: one moved copy of the table is the cheaper
        return F.embedding(rows, mode.moved(weight))
    table, move = parameter.tensor.view(-1, width), mode.moves[parameter.block]
    if move.low_rank(parameter) and width != parameter.tensor.shape[1]:
        return NotImplemented
    index, own = lowered[0] + start // width if start else lowered[0], lowered[1]
    outs = [move.rows(table, index[group] if own else index, parameter, group) for group in range(move.groups)]
    return mode.lift(torch.stack(outs)) if mode.level is not None else outs[0]


def _getitem(mode: MovedValues, input: Any, index: Any) -> Any:
    if isinstance(index, Tensor) and index.numel() and not index.is_floating_point() and index.dtype != torch.bool:
        index = torch.where(index < 0, index + input.shape[0], index)
    return _rows(mode, input, index)


def _embedding(
    mode: MovedValues,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    return NotImplemented if max_norm is not None else _rows(mode, weight, input)


def _index_select(mode: MovedValues, input: Any, dim: int, index: Any) -> Any:
    return _rows(mode, input, index) if dim == 0 else NotImplemented


def _attention(
    mode: MovedValues,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Groups become sequences of one larger batch, so that torch's own attention kernel serves them."""
    lowered = [found for tensor in (query, key, value) if (found := mode.lower(tensor)) is not None]
    sequences = query.shape[0]
    alike = all(t.dim() == 4 and t.shape[0] == sequences for t in (query, key, value))
    if len(lowered) < 3 or not any(own for _, own in lowered) or not alike or dropout_p:
        return NotImplemented
    if attn_mask is not None:
        mask = mode.lower(attn_mask)
        # a mask that is one for all sequences serves the larger batch as it is
        if mask is None or (mask[1] and attn_mask.dim() != 4):
            return NotImplemented
        if attn_mask.dim() == 4 and (mask[1] or attn_mask.shape[0] != 1):
            attn_mask = _fold(mode.groups, sequences, *mask)
    q, k, v = (_fold(mode.groups, sequences, *found) for found in lowered)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    return mode.lift(out.view(mode.groups, sequences, *out.shape[1:]))


def _fold(groups: int, sequences: int, tensor: Tensor, own: bool) -> Tensor:
    """[groups * sequences, ...] of [groups, 1 or sequences, ...], or of what all groups share."""
    stack = tensor if own else tensor.unsqueeze(0)
    return stack.expand(groups, sequences, *stack.shape[2:]).reshape(groups * sequences, *stack.shape[2:])


TAUGHT: dict[Handler, Handler] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.index_select: _index_select,
    torch.index_select: _index_select,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    torch.Tensor.__rmatmul__: _rmatmul,
    **dict.fromkeys((torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__), _matmul),
}
"""Functions that consume a moved parameter without a copy of it."""

GROUPED: dict[Handler, Handler] = {F.linear: _shared_linear, F.scaled_dot_product_attention: _attention}
"""Functions of unmoved parameters and activations that run better on all groups than through `torch.vmap`'s own rules."""

ROWS: dict[Handler, int] = {F.linear: 0, F.embedding: 0, torch.addmm: 1, torch.Tensor.addmm: 1}
"""Functions that work token by token, and which argument holds the tokens."""

ANSWERS = frozenset((Tensor.__bool__, Tensor.is_nonzero, torch.is_nonzero))
"""Functions that say yes or no."""
ASKED = ANSWERS | {Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item}
"""Functions that give Python a number."""


class Known(NamedTuple):
    """All of this of one function."""

    kind: Kind
    taught: Handler | None
    grouped: Handler | None
    rows: int | None
    asked: bool
    formula: Formula | None


@lru_cache(maxsize=4096)
def known(func: Handler) -> Known:
    """Asked for at every call of a forward, so one look-up."""
    return Known(kind_of(func), TAUGHT.get(func), GROUPED.get(func), ROWS.get(func), func in ASKED, FORMULAS.get(func))
