"""The operations in plain torch, on any device: the definition that compiled kernels are compared with, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blockzo.noise import ROUNDING_DIRECTION, gaussian_word, low_rank_at, noise_at, noise_range, rounding_bits
from blockzo.ops.params import Target
from blockzo.ops.quantized import QuantizedWeight
from blockzo.ops.shards import in_order, indices
from blockzo.ops.steps import Step

READS_PACKED, LOW_RANK, PER_WEIGHT = False, True, True
CHUNK = 1 << 20
PROJECT_CHUNK, PROJECT_LANES = 4096, 16
Where = int | Tensor
"""The index of the first of consecutive elements, or (int64) of each: a shard's lie apart."""


def _parts(target: Target, dense: Tensor) -> Iterator[tuple[Where, Tensor]]:
    """Runs of the row-major elements of `dense`, which holds the target in the order of its indices."""
    flat = dense.view(-1)
    for first in range(0, flat.numel(), CHUNK):
        part = flat[first : first + CHUNK]
        if target.place is None:
            yield first, part
        else:
            yield indices(dense.shape, target.place, first, part.numel(), part.device), part


def _ordered(target: Target) -> Target:
    if target.place is None:
        return target
    tensor, place = in_order(target.tensor, target.place)
    scales = None if target.per_weight is None else in_order(target.per_weight, target.place)[0]
    return replace(target, tensor=tensor, place=place, per_weight=scales)


class _Scales:
    """Of a run of elements, float32; None: they have none."""

    def __init__(self, values: Tensor | None) -> None:
        self.values = values

    def by(self, move: Tensor) -> Tensor:
        """What the weights are moved by."""
        return move if self.values is None else self.values * move

    def chosen(self, moved: Tensor, before: Tensor) -> Tensor:
        """A scale of 0 leaves the bits as they are."""
        return moved if self.values is None else torch.where(self.values == 0.0, before, moved)


def _rewrite(target: Target, change: Callable[[Where, Tensor, _Scales], Tensor]) -> None:
    """Puts every run of row-major elements through `change(where, values, scales) -> values of the same dtype`."""
    with torch.no_grad():
        target = _ordered(target)
        tensor = target.tensor
        dense = tensor if tensor.is_contiguous() else tensor.contiguous()
        scales = None if target.per_weight is None else target.per_weight.reshape(-1)
        done = 0
        for where, part in _parts(target, dense):
            own = _Scales(None if scales is None else scales[done : done + part.numel()].float())
            part.copy_(own.chosen(change(where, part, own), part))
            done += part.numel()
        if dense is not tensor:
            tensor.copy_(dense)


def _noise(where: Where, count: int, step: Step, stream: int, direction: int, device: torch.device) -> Tensor:
    if step.rank:
        if not isinstance(where, Tensor):
            where = torch.arange(where, where + count, dtype=torch.int64, device=device)
        return low_rank_at(where, step.width, step.rank, step.seed, step.distribution, stream, direction)
    if isinstance(where, Tensor):
        return noise_at(where, step.seed, step.distribution, stream, direction)
    return noise_range(where, count, step.seed, step.distribution, stream, direction, device)


def _rounding_bits(where: Where, count: int, step: Step, stream: int, device: torch.device) -> Tensor:
    if isinstance(where, Tensor):
        word = gaussian_word(where, step.seed, stream, ROUNDING_DIRECTION)
        return torch.where((where & 1).to(torch.bool), word >> 16, word & 0xFFFF)
    return rounding_bits(where, count, step.seed, stream, device)


def weighted_sum(
    where: Where, count: int, step: Step, stream: int, device: torch.device, total: Tensor | None = None
) -> Tensor:
    """acc = 0, or `total`; acc = acc + (c_k * z_k) in float32, each operation rounded on its own."""
    if total is None:
        total = torch.zeros(count, dtype=torch.float32, device=device)
    for direction, coefficient in zip(step.directions, step.coefficients, strict=True):
        total = total + coefficient * _noise(where, count, step, stream, direction, device)
    return total


def round_stochastically(value: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """float32 -> bfloat16 or float16 with 16 random bits an element (docs/noise.md, "Stochastic rounding")."""
    pattern = value.view(torch.int32)
    if dtype == torch.bfloat16:
        moved = ((pattern.long() + bits) & 0xFFFF0000).to(torch.int32).view(torch.float32)
    else:
        large = ((pattern.long() + (bits >> 3)) & 0xFFFFE000).to(torch.int32).view(torch.float32)
        ticks = torch.floor(value.abs() * 2.0**24 + bits.to(torch.float32) * 2.0**-16)
        small = torch.copysign(ticks * 2.0**-24, value)
        moved = torch.where(value.abs() >= 2.0**-14, large, small)
    return torch.where(torch.isfinite(value), moved, value).to(dtype)


def perturb_(found: Sequence[Target], step: Step) -> None:
    """w <- round(w + (c * z)) for one direction."""
    for target in found:

        def change(where: Where, part: Tensor, scales: _Scales, stream: int = target.stream) -> Tensor:
            return (part.float() + scales.by(_term(part, where, step, stream))).to(part.dtype)

        _rewrite(target, change)


def _term(values: Tensor, where: Where, step: Step, stream: int) -> Tensor:
    """c * z."""
    (direction,), (scale,) = step.directions, step.coefficients
    return scale * _noise(where, values.numel(), step, stream, direction, values.device)


def shift_(found: Sequence[Target], step: Step) -> None:
    """w <- round(w + sum_k c_k z_k), the sum accumulated in float32 from 0."""

    for target in found:

        def change(where: Where, part: Tensor, scales: _Scales, stream: int = target.stream) -> Tensor:
            total = weighted_sum(where, part.numel(), step, stream, part.device)
            return (part.float() + scales.by(total)).to(part.dtype)

        _rewrite(target, change)


def replay_(found: Sequence[Target], steps: Sequence[Step]) -> None:
    """w <- round(w * factor - sum_k c_k z_k) for each step in turn, rounded to storage; a step that joins hands its sum on."""
    for target in found:

        def change(where: Where, part: Tensor, scales: _Scales, stream: int = target.stream) -> Tensor:
            total: Tensor | None = None
            for step in steps:
                total = weighted_sum(where, part.numel(), step, stream, part.device, total)
                if step.joins:
                    continue
                value = part.float()
                if step.factor != 1.0:
                    value = value * step.factor
                value, total = value - scales.by(total), None
                if step.stochastic and part.dtype != torch.float32:
                    bits = _rounding_bits(where, part.numel(), step, stream, part.device)
                    part = round_stochastically(value, part.dtype, bits)
                else:
                    part = value.to(part.dtype)
            return part

        _rewrite(target, change)


def perturbed_copy(out: Tensor, source: Tensor, start: int, step: Step, stream: int) -> None:
    """out <- round(source + (c * z)); `source` is contiguous and begins at row-major index `start` of its tensor."""
    flat, result = source.view(-1), out.view(-1)
    for first in range(0, flat.numel(), CHUNK):
        part = flat[first : first + CHUNK]
        result[first : first + CHUNK] = part.float() + _term(part, start + first, step, stream)


def perturbed_rows(out: Tensor, weight: Tensor, rows: Tensor, step: Step, stream: int) -> None:
    """out[j] <- round(weight[rows[j]] + (c * z of that row)); `weight` is [n, width], `rows` int64 [m]."""
    width = weight.shape[1]
    (direction,), (scale,) = step.directions, step.coefficients
    index = rows.view(-1, 1) * width + torch.arange(width, device=weight.device)
    z = _noise(index.reshape(-1), index.numel(), step, stream, direction, weight.device).view(index.shape)
    out.copy_((weight[rows].float() + scale * z).to(out.dtype))


def perturbed_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    start: int,
    step: Step,
    stream: int,
    *,
    moved: str = "auto",
) -> Tensor:
    """x [G, T, K] times (weight + c_g z_g) of its group, in float32; result [G, T, N] in the dtype of `x`. `moved` "rounded": the
    second factor is rounded to the dtype of `weight`; else it is not.
    """
    dtype = torch.float32 if isinstance(weight, QuantizedWeight) or moved != "rounded" else weight.dtype
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantize()
    rows, width = weight.shape
    index = start + torch.arange(rows, device=weight.device).view(-1, 1) * weight.stride(0)
    index = (index + torch.arange(width, device=weight.device)).reshape(-1)
    outs = []
    for group, (direction, scale) in enumerate(zip(step.directions, step.coefficients, strict=True)):
        own = weight.float()
        if scale != 0.0:
            z = _noise(index, index.numel(), step, stream, direction, weight.device).view(rows, width)
            own = (own + scale * z).to(dtype).float()
        out = x[group].float() @ own.t()
        if bias is not None:
            out = out + (bias if bias.dim() == 1 else bias[group]).float()
        outs.append(out.to(x.dtype))
    return torch.stack(outs)


def project(found: Sequence[Target], step: Step) -> list[float]:
    """<delta, z_k> in float64: 16 lanes over chunks of 4,096 elements, chunks added in order, tensors in order."""
    totals = [0.0] * len(step.directions)
    for target in map(_ordered, found):
        dense = target.tensor.detach().contiguous()
        for k, direction in enumerate(step.directions):
            for where, part in _parts(target, dense):
                z = _noise(where, part.numel(), step, target.stream, direction, part.device)
                for value in _chunk_sums(part.double() * z.double()):
                    totals[k] += value
    return totals


def _chunk_sums(products: Tensor) -> list[float]:
    pad = -products.numel() % PROJECT_CHUNK
    rows = torch.nn.functional.pad(products, (0, pad)).view(-1, PROJECT_CHUNK // PROJECT_LANES, PROJECT_LANES)
    lanes = torch.zeros(rows.shape[0], PROJECT_LANES, dtype=torch.float64, device=products.device)
    for row in rows.unbind(1):
        lanes = lanes + row
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return [float(value) for value in lanes[:, 0].tolist()]
