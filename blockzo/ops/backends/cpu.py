"""The compiled kernels for CPU tensors: the functions of `reference.py`, by addresses and codes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

# after torch, whose OpenMP runtime the extension then shares: two pools would fight over the cores
from blockzo import _native
from blockzo.ops import panels
from blockzo.ops.params import Target
from blockzo.ops.quantized import QuantizedWeight
from blockzo.ops.shards import Place, in_order, row_major
from blockzo.ops.steps import Step

READS_PACKED, LOW_RANK, PER_WEIGHT = False, True, True
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MASK = 3
_INTEGERS = {8: 3, 4: 4}
_PERTURB, _SHIFT, _UPDATE = range(3)

_forced = os.environ.get("BLOCKZO_ISA")
if _forced:
    try:
        _native.choose(_forced)
    except ValueError as error:
        raise ValueError(f"BLOCKZO_ISA is {_forced!r}: {error}") from None


def instruction_sets() -> Iterator[str]:
    """Those that can run here, fastest first; each is in force while it is yielded."""
    before = _native.chosen()
    try:
        for name in _native.available():
            _native.choose(name)
            yield name
    finally:
        _native.choose(before)


def _view(target: Target) -> tuple[Any, ...]:
    tensor = target.tensor
    return tensor.data_ptr(), _DTYPES[tensor.dtype], target.stream, list(tensor.shape), list(tensor.stride())


def _shard(target: Target) -> tuple[Any, ...]:
    assert target.place is not None
    view, place = in_order(target.tensor, target.place)
    return _view(replace(target, tensor=view)), place.start, list(place.strides)


def _scaled(target: Target) -> tuple[Any, ...]:
    assert target.per_weight is not None
    place = target.place or Place(0, row_major(target.tensor.shape))
    scales = in_order(target.per_weight, place)[0]
    code = _DTYPES.get(scales.dtype, _MASK)
    return _shard(replace(target, place=place)), (scales.data_ptr(), code, 0, list(scales.shape), list(scales.stride()))


def _step(step: Step) -> tuple[Any, ...]:
    distribution = int(step.distribution == "gaussian")
    numbers = list(step.directions), list(step.coefficients), step.factor, step.stochastic, step.joins
    return step.seed, distribution, *numbers, step.rank, step.width


def _apply(found: Sequence[Target], steps: Sequence[Step], mode: int) -> None:
    lines, threads = [_step(s) for s in steps], torch.get_num_threads()
    plain = [t for t in found if t.per_weight is None]
    whole, shards = [_view(t) for t in plain if t.place is None], [_shard(t) for t in plain if t.place is not None]
    _native.apply(whole, lines, mode, threads)
    if shards:
        _native.apply_shards(shards, lines, mode, threads)
    if len(plain) < len(found):
        scaled = [_scaled(t) for t in found if t.per_weight is not None and t.tensor.numel()]
        _native.apply_scaled(scaled, lines, mode, threads)
    # the kernels write behind autograd's back
    torch.autograd.graph.increment_version([t.tensor for t in found if not t.tensor.is_inference()])


def perturb_(found: Sequence[Target], step: Step) -> None:
    _apply(found, [step], _PERTURB)


def shift_(found: Sequence[Target], step: Step) -> None:
    _apply(found, [step], _SHIFT)


def replay_(found: Sequence[Target], steps: Sequence[Step]) -> None:
    _apply(found, steps, _UPDATE)


def perturbed_copy(out: Tensor, source: Tensor, start: int, step: Step, stream: int) -> None:
    _native.copy(
        out.data_ptr(),
        _DTYPES[out.dtype],
        source.data_ptr(),
        _DTYPES[source.dtype],
        source.numel(),
        start,
        _step(step),
        stream,
        torch.get_num_threads(),
    )


def perturbed_rows(out: Tensor, weight: Tensor, rows: Tensor, step: Step, stream: int) -> None:
    _native.rows(
        out.data_ptr(),
        weight.data_ptr(),
        _DTYPES[weight.dtype],
        weight.shape[1],
        rows.data_ptr(),
        rows.numel(),
        _step(step),
        stream,
        torch.get_num_threads(),
    )


def factors(
    first: int,
    count: int,
    side: int,
    rank: int,
    seed: int,
    distribution: str,
    stream: int,
    direction: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """As `blockzo.noise.factors`, on the CPU."""
    out = torch.empty(count, rank, dtype=torch.float32)
    start = side + first * rank
    _native.factors(out.data_ptr(), start, count * rank, seed, int(distribution == "gaussian"), stream, direction)
    return out


def project(found: Sequence[Target], step: Step) -> list[float]:
    totals = [0.0] * len(step.directions)
    for target in found:
        if target.place is None:
            part = _native.project(_view(target), _step(step), torch.get_num_threads())
        else:
            part = _native.project_shard(_shard(target), _step(step), torch.get_num_threads())
        totals = [a + b for a, b in zip(totals, part, strict=True)]
    return totals


def perturbed_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    start: int,
    step: Step,
    stream: int,
    path: str | None = None,
    *,
    moved: str = "auto",
) -> Tensor:
    """`path`: one of `panels.PATHS`, for tests and benchmarks; None: the fastest as measured."""
    path = path or panels.choose_path(x, weight, start, _native.chosen(), _native.vendor(), moved)
    if path in ("tiles", "narrow tiles") or isinstance(weight, QuantizedWeight):
        return _tiles(x, weight, bias, start, step, stream, path == "narrow tiles")
    narrow, rounded = path == "narrow panels", path == "rounded panels"
    return panels.perturbed_linear(x, weight, bias, start, step, stream, narrow, move_panel, rounded=rounded)


def _tiles(
    x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None, start: int, step: Step, stream: int, narrow: bool
) -> Tensor:
    groups, tokens, width = x.shape
    rows = weight.shape[0]
    x_group, x_row, x_column = x.stride()
    if x_column != 1 and width > 1:
        x = x.contiguous()
        x_group, x_row, _ = x.stride()
    if bias is not None and rows > 1 and bias.stride(-1) != 1:
        bias = bias.contiguous()
    if isinstance(weight, QuantizedWeight):
        held = (weight.data.data_ptr(), _INTEGERS[weight.bits], weight.data.stride(0), weight.scale.data_ptr())
        apart = width
    else:
        apart = weight.stride(0)
        held = (weight.data_ptr(), _DTYPES[weight.dtype], apart, 0)
    out = torch.empty(groups, tokens, rows, dtype=x.dtype)
    _native.linear(
        (groups, tokens, rows, width),
        (x.data_ptr(), _DTYPES[x.dtype], x_group, x_row),
        held,
        (start, apart),
        (0, 0, 0) if bias is None else (bias.data_ptr(), _DTYPES[bias.dtype], bias.stride(0) if bias.dim() == 2 else 0),
        out.data_ptr(),
        narrow,
        _step(step),
        stream,
        torch.get_num_threads(),
    )
    return out


def move_panel(out: Tensor, rows: Tensor, start: int, step: Step, stream: int) -> None:
    """`rows` [n, width], unit stride along `width`, moved into the dense `out`; row r begins at start + r * rows.stride(0)."""
    count, width = rows.shape
    _native.panel(
        out.data_ptr(),
        _DTYPES[out.dtype],
        rows.data_ptr(),
        _DTYPES[rows.dtype],
        count,
        width,
        rows.stride(0),
        start,
        _step(step),
        stream,
        torch.get_num_threads(),
    )
