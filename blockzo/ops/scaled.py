"""Perturbed values and products of tensors whose weights have a scale each: they are copied piece by piece and moved there.

`scales`: of all elements of the tensor in row-major order (`flat_scales`). `step`: of the tensor's shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blockzo.ops import panels
from blockzo.ops.backends import choice
from blockzo.ops.copies import checked_rows
from blockzo.ops.params import Target
from blockzo.ops.shards import Place
from blockzo.ops.steps import Step


def flat_scales(per_weight: Tensor) -> Tensor:
    """One dimension, of `Target.per_weight`; one number for all stays one."""
    if not per_weight.numel() or any(
        stride for stride, n in zip(per_weight.stride(), per_weight.shape, strict=True) if n > 1
    ):
        return per_weight.reshape(-1)
    return per_weight.as_strided((1,), (1,)).expand(per_weight.numel())


def _part(scales: Tensor, start: int, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    unit = scales.stride(0)
    return scales.as_strided(list(shape), [unit * s for s in strides], scales.storage_offset() + unit * start)


def _move(out: Tensor, scales: Tensor, start: int, strides: Sequence[int], stream: int) -> Target:
    return Target("", stream, out, Place(start, tuple(strides)), per_weight=_part(scales, start, out.shape, strides))


def scaled_copy(out: Tensor, source: Tensor, scales: Tensor, start: int, step: Step, stream: int) -> None:
    """`perturbed_copy`."""
    flat = out.copy_(source).view(-1)
    target = _move(flat, scales, start, (1,), stream)
    choice.for_target(target, step.rank).perturb_([target], step)


def scaled_rows(table: Tensor, rows: Tensor, scales: Tensor, step: Step, stream: int) -> Tensor:
    """`perturbed_rows`; each row that is read is moved once."""
    wanted, places = checked_rows(table, rows).unique(return_inverse=True)
    width, out = table.shape[1], table.detach()[wanted]
    found = [_move(one, scales, row * width, (1,), stream) for one, row in zip(out, wanted.tolist(), strict=True)]
    for backend, part in choice.split(found, step.rank):
        backend.perturb_(part, step)
    return out[places].view(*rows.shape, width)


def scaled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scales: Tensor,
    start: int,
    step: Step,
    stream: int,
    moved: str = "auto",
) -> Tensor:
    """`perturbed_linear` for `weight` [N, K] with unit stride along K, by panels of it."""

    def move_panel(out: Tensor, rows: Tensor, first: int, own: Step, stream: int) -> None:
        out.copy_(rows)
        target = _move(out, scales, first, (rows.stride(0), 1), stream)
        choice.for_target(target, own.rank).perturb_([target], own)

    flat = x.reshape(len(step.directions), -1, weight.shape[1])
    # GPUs multiply 16-bit operands as such, here as elsewhere
    narrow, rounded = x.is_cuda and x.dtype == weight.dtype and moved != "float32", moved == "rounded"
    out = panels.perturbed_linear(flat, weight.detach(), bias, start, step, stream, narrow, move_panel, rounded=rounded)
    return out.view(*x.shape[:-1], weight.shape[0])
