"""Kernels for GPU tensors: the functions of `reference.py`, on the current stream of the tensors' device. In Triton; moves over
lists of tensors in CUDA where that library is built.

Experimental: never run on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from blockzo.kernels.moves import PERTURB, SHIFT, UPDATE
from blockzo.kernels.moves import move as move_kernel
from blockzo.kernels.project import project as project_kernel
from blockzo.kernels.spans import move_rows as rows_kernel
from blockzo.ops import panels
from blockzo.ops.backends import reference
from blockzo.ops.backends.gpu import cuda, linear_choice, low_rank
from blockzo.ops.backends.gpu.low_rank import factors as factors
from blockzo.ops.backends.gpu.products import products
from blockzo.ops.backends.gpu.runs import Runs, run_tables
from blockzo.ops.backends.gpu.tables import (
    DTYPES,
    EXACT,
    on_device,
    programs,
    queue_of,
    signed,
    step_tables,
    tensor_tables,
    used,
)
from blockzo.ops.packed import Given, PackedStep
from blockzo.ops.params import Target
from blockzo.ops.quantized import QuantizedWeight
from blockzo.ops.shards import Place
from blockzo.ops.steps import Step

_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
READS_PACKED, LOW_RANK, PER_WEIGHT = True, True, False
BLOCK = 4096
"""Elements of a program."""
PER_WARP = 512
"""16 elements a thread: with 32 the update takes 250 registers."""
PANEL_BYTES = 24 << 20
"""About half of the second-level cache of an H100."""
PROJECT_CHUNKS = 8


def _runs(steps: Sequence[Given]) -> list[tuple[Given, ...]]:
    """Consecutive steps of one distribution: every step rounds, so a pass may end after any of them. A packed one is alone."""
    runs: list[list[Given]] = []
    for step in steps:
        alone = isinstance(step, PackedStep) or (runs and isinstance(runs[-1][0], PackedStep))
        if not runs or alone or runs[-1][0].distribution != step.distribution:
            runs.append([])
        runs[-1].append(step)
    return [tuple(run) for run in runs]


Tables = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of tensors, chunks, steps and terms."""


def cuda_library(device: torch.device) -> ctypes.CDLL | None:
    return cuda.library() if device.type == "cuda" else None


def _launch_triton(
    tables: Tables,
    run: Sequence[Given],
    dtype: torch.dtype,
    mode: int,
    aligned: bool,
    block: int = BLOCK,
    runs: bool = False,
) -> None:
    move_kernel[programs(len(tables[1]))](
        *tables,
        len(run),
        DTYPE=DTYPES[dtype],
        MODE=mode,
        GAUSSIAN=run[0].distribution == "gaussian",
        STOCHASTIC=any(step.stochastic for step in run),
        JOINS=any(isinstance(step, Step) and step.joins for step in run),
        ALIGNED=aligned,
        BLOCK=block,
        RUNS=runs,
        **{**EXACT, "num_warps": max(1, block // PER_WARP)},
    )


def _launch_cuda(library: ctypes.CDLL, tables: Tables, run: Sequence[Given], dtype: torch.dtype, mode: int) -> None:
    tensors, chunks, steps, terms = (table.data_ptr() for table in tables)
    gaussian = int(run[0].distribution == "gaussian")
    device = tables[0].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    code = library.blockzo_cuda_move(
        tensors, chunks, len(tables[1]), steps, len(run), terms, _CODES[dtype], mode, gaussian, stream
    )
    cuda.check(library, code)


def _apply(found: Sequence[Target], steps: Sequence[Given], mode: int) -> None:
    _apply_whole([t for t in found if t.place is None], steps, mode)
    _apply_parts([t for t in found if t.place is not None], steps, mode)
    # the kernels write behind autograd's back
    torch.autograd.graph.increment_version([t.tensor for t in found if not t.tensor.is_inference()])


def _apply_parts(found: Sequence[Target], steps: Sequence[Given], mode: int) -> None:
    """In Triton alone: the CUDA library knows no runs."""
    parts = [Runs.of(target) for target in found]
    groups: dict[tuple[torch.device, torch.dtype, bool, int], list[Runs]] = {}
    for part in parts:
        block = min(BLOCK, max(128, 1 << (part.width - 1).bit_length()))
        groups.setdefault((part.memory.device, part.memory.dtype, part.aligned, block), []).append(part)
    for (device, dtype, aligned, block), members in groups.items():
        with on_device(members[0].memory):
            queue = queue_of(device)
            held, chunks = run_tables(tuple(part.layout for part in members), block, queue)
            for run in _runs(steps):
                tables = (held, chunks, *step_tables(run, queue))
                _launch_triton(tables, run, dtype, mode, aligned, block, runs=True)
                used(*tables)
    for part in parts:
        part.put_back()


def _apply_whole(found: Sequence[Target], steps: Sequence[Given], mode: int) -> None:
    dense = [(t.tensor if t.tensor.is_contiguous() else t.tensor.contiguous(), t) for t in found if t.tensor.numel()]
    groups: dict[tuple[torch.device, torch.dtype, bool], list[tuple[int, int, int]]] = {}
    for tensor, target in dense:
        key = (tensor.device, tensor.dtype, tensor.data_ptr() % 16 == 0)
        groups.setdefault(key, []).append((tensor.data_ptr(), tensor.numel(), target.stream))
    holders = {tensor.device: tensor for tensor, _ in dense}
    for (device, dtype, aligned), tensors in groups.items():
        with on_device(holders[device]):
            library = cuda_library(device)
            block = library.blockzo_cuda_chunk() if library else BLOCK
            queue = queue_of(device)
            held, chunks = tensor_tables(tuple(tensors), block, queue)
            for run in _runs(steps):
                tables = (held, chunks, *step_tables(run, queue))
                if library:
                    _launch_cuda(library, tables, run, dtype, mode)
                else:
                    _launch_triton(tables, run, dtype, mode, aligned)
                used(*tables)
    for tensor, target in dense:
        if tensor is not target.tensor:
            with torch.no_grad():
                target.tensor.copy_(tensor)


def perturb_(found: Sequence[Target], step: Given) -> None:
    if isinstance(step, Step) and step.rank:
        low_rank.apply(found, [step], PERTURB.value, lambda others: reference.perturb_(others, step))
    else:
        _apply(found, [step], PERTURB.value)


def shift_(found: Sequence[Target], step: Given) -> None:
    if isinstance(step, Step) and step.rank:
        low_rank.apply(found, [step], SHIFT.value, lambda others: reference.shift_(others, step))
    else:
        _apply(found, [step], SHIFT.value)


def replay_(found: Sequence[Target], steps: Sequence[Given]) -> None:
    low = [step for step in steps if isinstance(step, Step) and step.rank]
    if low:
        # in one call all steps have a rank, or none
        low_rank.apply(found, low, UPDATE.value, lambda others: reference.replay_(others, low))
    else:
        _apply(found, steps, UPDATE.value)


def _move_rows(
    out: Tensor,
    source: Tensor,
    rows: Tensor | None,
    shape: tuple[int, int],
    apart: int,
    start: int,
    step: Given,
    stream: int,
) -> None:
    count, width = shape
    if not count or not width:
        return
    aligned = start % 128 == 0 and (apart % 128 == 0 or count == 1)
    block = min(BLOCK, max(128, 1 << (width - 1).bit_length()))
    blocks = -(-(width + (0 if aligned else 127)) // block)
    with on_device(source):
        lines, terms = step_tables([step], queue_of(source.device))
        rows_kernel[programs(count, blocks)](
            out,
            source,
            out if rows is None else rows,
            lines,
            terms,
            start,
            apart,
            width,
            blocks,
            signed(stream),
            OUT=DTYPES[out.dtype],
            GATHER=rows is not None,
            GAUSSIAN=step.distribution == "gaussian",
            ALIGNED=aligned,
            BLOCK=block,
            **EXACT,
        )
        used(lines, terms)


def perturbed_copy(out: Tensor, source: Tensor, start: int, step: Given, stream: int) -> None:
    if isinstance(step, Step) and step.rank:
        _low_rank_copy(out, source, start, step, stream)
        return
    _move_rows(out, source, None, (1, source.numel()), 0, start, step, stream)


def _low_rank_copy(out: Tensor, source: Tensor, start: int, step: Step, stream: int) -> None:
    """Whole rows are moved where they were copied to."""
    if start % step.width or source.numel() % step.width:
        reference.perturbed_copy(out, source, start, step, stream)
    else:
        rows = out.copy_(source.view(out.shape)).view(-1, step.width)
        perturb_([Target("", stream, rows, Place(start, (step.width, 1)))], step)


def perturbed_rows(out: Tensor, weight: Tensor, rows: Tensor, step: Given, stream: int) -> None:
    if isinstance(step, Step) and step.rank:
        reference.perturbed_rows(out, weight, rows, step, stream)
        return
    _move_rows(out, weight, rows, (rows.numel(), weight.shape[1]), weight.shape[1], 0, step, stream)


def move_panel(out: Tensor, rows: Tensor, start: int, step: Given, stream: int) -> None:
    """`rows` [n, width], unit stride along `width`, moved into the dense `out`; row r begins at start + r * rows.stride(0)."""
    if rows.is_contiguous():
        perturbed_copy(out, rows, start, step, stream)
    else:
        _move_rows(out, rows, None, (rows.shape[0], rows.shape[1]), rows.stride(0), start, step, stream)


def project(found: Sequence[Target], step: Step) -> list[float]:
    if step.rank:
        return reference.project(found, step)
    totals = np.zeros(len(step.directions))
    for target in found:
        if target.place is not None:
            totals = totals + np.array(reference.project([target], step))
            continue
        flat = target.tensor.detach().contiguous().view(-1)
        chunks = -(-flat.numel() // 4096)
        if not chunks or not len(totals):
            continue
        sums = torch.empty(len(totals), chunks, 16, dtype=torch.float64, device=flat.device)
        with on_device(flat):
            lines, terms = step_tables([step], queue_of(flat.device))
            project_kernel[programs(-(-chunks // PROJECT_CHUNKS), len(totals))](
                sums,
                flat,
                flat.numel(),
                chunks,
                lines,
                terms,
                len(totals),
                signed(target.stream),
                GAUSSIAN=step.distribution == "gaussian",
                CHUNKS=PROJECT_CHUNKS,
                **EXACT,
            )
            used(lines, terms)
        while sums.shape[-1] > 1:
            half = sums.shape[-1] // 2
            sums = sums[..., :half] + sums[..., half:]
        # one after the other, as everywhere: a tree of additions has other bits
        totals = np.cumsum(np.concatenate([totals[:, None], sums[..., 0].cpu().numpy()], axis=1), axis=1)[:, -1]
    return [float(value) for value in totals]


@cache
def _gpu_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def perturbed_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    start: int,
    step: Given,
    stream: int,
    path: str | None = None,
    *,
    moved: str = "auto",
) -> Tensor:
    """`path`: "products" or "panels", for tests and benchmarks; None takes the one for this number of tokens.

    Products round no moved weight, so `moved` "float32" takes them wherever they fit, and "rounded" nowhere.
    """
    if isinstance(weight, QuantizedWeight):
        weight, moved = weight.dequantize(), "auto"
    # the tiles of noise begin where a Philox block does
    unit = 8 if step.distribution == "gaussian" else 128
    dtype = weight.dtype
    # float32 products are not for tensor cores, and cuBLAS has the better plain ones
    fits = dtype is x.dtype and dtype is not torch.float32 and start % unit == 0
    fits = fits and (weight.stride(0) % unit == 0 or weight.shape[0] == 1)
    if path is None:
        path = "products" if fits and moved == "float32" else "panels"
        if fits and moved == "auto":
            gpu = _gpu_name(weight.device.index) if weight.is_cuda else linear_choice.ANY
            path = linear_choice.choose(gpu, _NAMES[dtype], step.distribution, x.shape[1])
    if path == "panels":
        narrow, rounded = x.dtype == dtype and moved != "float32", moved == "rounded"
        with on_device(x):
            return panels.perturbed_linear(
                x, weight, bias, start, step, stream, narrow, move_panel, PANEL_BYTES, rounded
            )
    if not fits:
        raise ValueError(
            f"products need x and weight of one 16-bit dtype, and a start and rows apart by multiples of {unit}; found "
            f"{x.dtype}, {dtype}, {start}, {weight.stride(0)}"
        )
    return products(x, weight, bias, start, step, stream)
