"""Perturbed values in another tensor: of a whole, of a part, of the rows that an embedding reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockzo.noise import Noise, check_stream
from blockzo.ops import library, low_rank
from blockzo.ops.backends import choice
from blockzo.ops.params import check_tensor
from blockzo.ops.steps import make_step


def perturbed_copy(
    source: Tensor,
    noise: Noise,
    stream: str | int,
    scale: float,
    direction: int = 0,
    start: int = 0,
    out: Tensor | None = None,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """source + scale * z into another tensor; `source` is contiguous and begins at index `start` of its logical tensor.

    Args:
        shape: of the logical tensor, on which noise of a low rank depends; that of `source` where None.
        out: contiguous, as many elements as `source`, float32 or the dtype of `source`; made where None.

    Returns:
        `out`.
    """
    check_tensor(str(stream), source)
    out = torch.empty_like(source) if out is None else out
    check_tensor("out", out)
    if not (source.is_contiguous() and out.is_contiguous()) or out.numel() != source.numel():
        raise ValueError(
            f"source {tuple(source.shape)} and out {tuple(out.shape)} must be contiguous and have equally many elements"
        )
    if out.device != source.device or out.dtype not in (torch.float32, source.dtype):
        raise ValueError(
            f"out is {out.dtype} on {out.device}, source {source.dtype} on {source.device}; "
            "expected one device, and float32 or the dtype of source"
        )
    step = make_step(noise, [direction], [scale])
    where = (start, check_stream(stream), library.signed(step.seed), step.distribution)
    if step.rank:
        step = step.of_shape(low_rank.named_shape(source, start, shape))
    with torch.no_grad():
        if step.rank:
            choice.for_rank(source, step.rank).perturbed_copy(out, source, start, step, check_stream(stream))
            return out
        torch.ops.blockzo.perturbed_copy(out, source, *where, direction, *step.coefficients)
    return out


def perturbed_rows(
    weight: Tensor, rows: Tensor, noise: Noise, stream: str | int, scale: float, direction: int = 0
) -> Tensor:
    """weight[rows] + scale * z of just these rows: noise for an embedding is made only where it is read.

    Args:
        weight: [n, width], contiguous.
        rows: integer tensor of any shape, values in [0, n).

    Returns:
        Tensor of shape rows.shape + [width], dtype of `weight`.
    """
    check_tensor(str(stream), weight)
    flat = checked_rows(weight, rows)
    step = make_step(noise, [direction], [scale])
    where = (check_stream(stream), library.signed(step.seed), step.distribution)
    own = step.of_shape(weight.shape)
    with torch.no_grad():
        if own.rank:
            out = weight.new_empty(flat.numel(), weight.shape[1])
            choice.for_rank(weight, own.rank).perturbed_rows(out, weight, flat, own, where[0])
            return out.view(*rows.shape, weight.shape[1])
        out = torch.ops.blockzo.perturbed_rows(weight, flat, *where, direction, *step.coefficients)
    return out.view(*rows.shape, weight.shape[1])


def checked_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """Row numbers as the kernels take them. On a GPU those outside the weight stop its program: nothing waits to see them."""
    if weight.dim() != 2 or not weight.is_contiguous():
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected a contiguous [rows, width] tensor")
    flat = rows.reshape(-1).to(device=weight.device, dtype=torch.int64).contiguous()
    if flat.is_cuda:
        torch._assert_async(((flat >= 0) & (flat < weight.shape[0])).all())
    elif flat.numel() and not (0 <= int(flat.min()) and int(flat.max()) < weight.shape[0]):
        raise ValueError(f"rows span [{int(flat.min())}, {int(flat.max())}]; the weight has {weight.shape[0]} rows")
    return flat
