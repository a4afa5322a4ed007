"""Noise of a low rank among the operations: which tensors have it, and products that need no moved weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from blockzo.contract import COLUMN_FACTORS, ROW_FACTORS
from blockzo.noise import low_rank_scale
from blockzo.ops.backends import choice
from blockzo.ops.params import Target
from blockzo.ops.quantized import QuantizedWeight
from blockzo.ops.steps import Step


def whole_shape(target: Target) -> tuple[int, ...]:
    """The shape that decides about a target's noise.

    Raises:
        ValueError: it is part of a tensor whose shape is not known.
    """
    if target.place is None:
        return tuple(target.tensor.shape)
    if target.place.shape is None:
        raise ValueError(
            f"parameter {target.name!r} is a Shard without the shape of its whole, on which noise of a low rank depends; "
            "expected blockzo.Shard.at(tensor, shape, offsets) or Shard(tensor, offset, strides, shape)"
        )
    return target.place.shape


def named_shape(part: Tensor | QuantizedWeight, start: int, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Of the logical tensor that a part, which begins at index `start`, is of.

    Raises:
        ValueError: it is not given, and the part is not the whole; or the part does not lie in it.
    """
    if shape is None:
        if start:
            raise ValueError(
                f"start is {start} and shape None; noise of a low rank depends on the shape of the whole tensor: expected shape="
            )
        return tuple(part.shape)
    if start + (part.shape[0] if len(part.shape) == 1 else 1) > prod(shape):
        raise ValueError(f"start is {start}; expected an index in a tensor of shape {tuple(shape)}")
    return tuple(shape)


def by_form(found: Sequence[Target], steps: Sequence[Step]) -> list[tuple[list[Target], list[Step]]]:
    """Targets and steps as backends take them: in one entry all steps have full rank, or one rank and width. Entries of one
    target come in the order of its steps.

    Raises:
        ValueError: as of `whole_shape`; before anything is written, where all targets are given.
    """
    if not any(step.rank for step in steps):
        return [(list(found), list(steps))]
    alike: dict[tuple[tuple[int, int], ...], tuple[list[Target], list[Step]]] = {}
    for target in found:
        shape = whole_shape(target)
        own = [step.of_shape(shape) for step in steps]
        alike.setdefault(tuple((s.rank, s.width) for s in own), ([], own))[0].append(target)
    runs = []
    for members, own in alike.values():
        for _, run in groupby(own, key=lambda step: (step.rank, step.width)):
            runs.append((members, list(run)))
    return runs


def sides(weight: Tensor | QuantizedWeight, start: int, width: int) -> tuple[slice, slice] | None:
    """Which rows and columns of the whole matrix [*, width] a view [N, K] of it has; None where it is of another form."""
    rows, columns = weight.shape
    apart, along = (columns, 1) if isinstance(weight, QuantizedWeight) else weight.stride()
    first, column = divmod(start, width)
    if (along != 1 and columns > 1) or (apart % width and rows > 1) or column + columns > width:
        return None
    step = max(1, apart // width) if rows > 1 else 1
    return slice(first, first + (rows - 1) * step + 1, step), slice(column, column + columns)


def is_part(weight: Tensor, start: int, width: int) -> bool:
    """Whether `linear` takes this view of a matrix of `width` columns."""
    return sides(weight, start, width) is not None or sides(weight.t(), start, width) is not None


def linear(
    x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None, start: int, step: Step, stream: int
) -> Tensor | None:
    """x [G, T, K] times (weight + c_g A_g B_g^T / sqrt(r)) of its group: one product of all rows by the weight as it is, and a
    correction of rank r. `weight` [N, K] is a part of the matrix, or the transpose of one.

    Returns:
        [G, T, N] in the dtype of x; None where the view of the matrix is of another form.
    """
    found, turned = sides(weight, start, step.width), False
    if found is None and not isinstance(weight, QuantizedWeight):
        found, turned = sides(weight.t(), start, step.width), True
    if found is None:
        return None
    groups, tokens, width = x.shape
    shared = groups > 1 and x.stride(0) == 0
    base = _plain(x[:1] if shared else x.reshape(1, groups * tokens, width), weight, bias, start, stream)
    base = base.view(1, tokens, -1).expand(groups, -1, -1) if shared else base.view(groups, tokens, -1)
    if bias is not None and bias.dim() == 2:
        base = base + bias.unsqueeze(1).to(base.dtype)
    if not any(step.coefficients) or not tokens:
        return base.contiguous()
    directions = sorted({d for d, c in zip(step.directions, step.coefficients, strict=True) if c})
    place = {direction: number for number, direction in enumerate(directions)}
    number = torch.tensor([place.get(d, 0) for d in step.directions], device=x.device)
    into, out = (_factors(part, side, directions, step, stream, x.device) for part, side in _order(found, turned))
    scale = torch.tensor(step.coefficients, dtype=torch.float32, device=x.device) * low_rank_scale(step.rank)
    if shared:
        inner = (x[0].float() @ into.permute(1, 0, 2).reshape(width, -1)).view(tokens, len(directions), -1)
        inner = inner.transpose(0, 1)[number]
    else:
        inner = torch.bmm(x.float(), into[number])
    correction = inner * scale.view(-1, 1, 1), out[number].transpose(1, 2)
    if shared or base.dtype != torch.float32:
        return torch.baddbmm(base.float(), *correction).to(x.dtype)
    return base.baddbmm_(*correction)


def _order(found: tuple[slice, slice], turned: bool) -> list[tuple[slice, int]]:
    """Of the inputs, then of the outputs: which rows or columns of the matrix, and which."""
    rows, columns = (found[0], ROW_FACTORS), (found[1], COLUMN_FACTORS)
    return [rows, columns] if turned else [columns, rows]


def _factors(
    part: slice, side: int, directions: Sequence[int], step: Step, stream: int, device: torch.device
) -> Tensor:
    """float32 [directions, entries, rank]."""
    where = side, step.rank, step.seed, step.distribution, stream
    make = choice.factors_on(device)
    each = [make(part.start, part.stop - part.start, *where, direction, device) for direction in directions]
    return torch.stack(each)[:, :: part.step or 1]


def _plain(x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None, start: int, stream: int) -> Tensor:
    """x [1, T, K] by the weight as it is, with the bias that all groups share."""
    shared = bias if bias is not None and bias.dim() == 1 else None
    held = weight.data if isinstance(weight, QuantizedWeight) else weight
    dense = isinstance(weight, Tensor)
    if (
        isinstance(weight, Tensor)
        and (weight.stride(1) != 1 or weight.device.type != "cpu")
        and x.dtype == weight.dtype
    ):
        return F.linear(x, weight, None if shared is None else shared.to(x.dtype))
    still = Step(0, "rademacher", (0,), (0.0,))
    if dense and (held.stride(1) != 1 and held.shape[1] > 1):
        held = weight = held.contiguous()  # two dtypes by a transposed weight: rare, and right
    return choice.for_tensor(held).perturbed_linear(x, weight, shared, start, still, stream)
