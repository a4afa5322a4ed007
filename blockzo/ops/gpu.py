"""Kernels for GPU tensors: the functions of `reference.py`, on the current stream of the tensors' device. In Triton; moves over
lists of tensors in CUDA where that library is built.

What a kernel is told of steps lies in small tables on the device, kept for as long as the same steps come: all layers of one
forward share one table.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from blockzo.kernels.linear import linear as linear_kernel
from blockzo.kernels.linear import tiles
from blockzo.kernels.moves import move as move_kernel
from blockzo.kernels.project import project as project_kernel
from blockzo.kernels.spans import move_rows as rows_kernel
from blockzo.ops import cuda, panels
from blockzo.ops.params import Target
from blockzo.ops.quantized import QuantizedWeight
from blockzo.ops.steps import Step

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PERTURB, _SHIFT, _UPDATE = range(3)
EXACT: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""Of every launch: multiplications and additions are rounded one by one."""
MOVE = {"num_warps": 8}
"""16 elements a thread: with 32 the update takes 250 registers."""
BLOCK = 4096
"""Elements of a program."""
FUSED_TOKENS = 64
"""Tokens a group up to which the fused layer serves: beyond, each tile of tokens would make the noise of the weight again. By
the count of instructions; not measured.
"""
PANEL_BYTES = 24 << 20
"""About half of the second-level cache of an H100."""
PROJECT_CHUNKS = 8


def _device(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _used(*tables: Tensor) -> None:
    """A table may be dropped from its cache while this stream still reads it."""
    for table in tables:
        if table.is_cuda:
            table.record_stream(torch.cuda.current_stream(table.device))


def _bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def _signed(value: int) -> int:
    """The int32 with the bits of a uint32."""
    return value - (1 << 32) if value >> 31 else value


def _words(seed: int) -> tuple[int, int]:
    return _signed(seed & 0xFFFFFFFF), _signed(seed >> 32)


@lru_cache(maxsize=128)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """By integers: as floats, coefficients of 0 and -0 would be one key."""
    # a kernel must be given an address even where it reads nothing
    return torch.tensor(rows or ((0, 0),), dtype=torch.int32).to(device)


def step_tables(steps: Sequence[Step], device: torch.device) -> tuple[Tensor, Tensor]:
    """int32 [steps, 6] and [terms, 2] of `kernels/moves.py`."""
    lines: list[tuple[int, ...]] = []
    terms: list[tuple[int, ...]] = []
    for step in steps:
        first = len(terms)
        terms += [(_signed(d), _bits(c)) for d, c in zip(step.directions, step.coefficients, strict=True)]
        lines.append((*_words(step.seed), first, len(terms), _bits(step.factor), int(step.stochastic)))
    return _table(tuple(lines), device), _table(tuple(terms), device)


@lru_cache(maxsize=64)
def tensor_tables(tensors: tuple[tuple[int, int, int], ...], block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [tensors, 3] of (address, elements, stream), and int32 [programs, 2] of (tensor, number of its chunk)."""
    programs = [-(-count // block) for _, count, _ in tensors]
    owner = np.repeat(np.arange(len(tensors), dtype=np.int32), programs)
    first = np.repeat(np.cumsum([0, *programs[:-1]]), programs)
    chunks = np.stack([owner, (np.arange(len(owner)) - first).astype(np.int32)], axis=1)
    return torch.tensor(tensors, dtype=torch.int64).to(device), torch.from_numpy(chunks).to(device)


def _runs(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """Consecutive steps of one distribution: every step rounds, so a pass may end after any of them."""
    runs: list[list[Step]] = []
    for step in steps:
        if not runs or runs[-1][0].distribution != step.distribution:
            runs.append([])
        runs[-1].append(step)
    return [tuple(run) for run in runs]


Tables = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of tensors, chunks, steps and terms."""


def cuda_library(device: torch.device) -> ctypes.CDLL | None:
    return cuda.library() if device.type == "cuda" else None


def _launch_triton(tables: Tables, run: Sequence[Step], dtype: torch.dtype, mode: int, aligned: bool) -> None:
    move_kernel[(len(tables[1]),)](
        *tables,
        len(run),
        DTYPE=_DTYPES[dtype],
        MODE=mode,
        GAUSSIAN=run[0].distribution == "gaussian",
        STOCHASTIC=any(step.stochastic for step in run),
        ALIGNED=aligned,
        BLOCK=BLOCK,
        **{**EXACT, **MOVE},
    )


def _launch_cuda(library: ctypes.CDLL, tables: Tables, run: Sequence[Step], dtype: torch.dtype, mode: int) -> None:
    tensors, chunks, steps, terms = (table.data_ptr() for table in tables)
    gaussian = int(run[0].distribution == "gaussian")
    device = tables[0].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    code = library.blockzo_cuda_move(
        tensors, chunks, len(tables[1]), steps, len(run), terms, _CODES[dtype], mode, gaussian, stream
    )
    cuda.check(library, code)


def _apply(found: Sequence[Target], steps: Sequence[Step], mode: int) -> None:
    dense = [(t.tensor if t.tensor.is_contiguous() else t.tensor.contiguous(), t) for t in found if t.tensor.numel()]
    groups: dict[tuple[torch.device, torch.dtype, bool], list[tuple[int, int, int]]] = {}
    for tensor, target in dense:
        key = (tensor.device, tensor.dtype, tensor.data_ptr() % 16 == 0)
        groups.setdefault(key, []).append((tensor.data_ptr(), tensor.numel(), target.stream))
    holders = {tensor.device: tensor for tensor, _ in dense}
    for (device, dtype, aligned), tensors in groups.items():
        with _device(holders[device]):
            library = cuda_library(device)
            block = library.blockzo_cuda_chunk() if library else BLOCK
            held, chunks = tensor_tables(tuple(tensors), block, device)
            for run in _runs(steps):
                tables = (held, chunks, *step_tables(run, device))
                if library:
                    _launch_cuda(library, tables, run, dtype, mode)
                else:
                    _launch_triton(tables, run, dtype, mode, aligned)
                _used(*tables)
    for tensor, target in dense:
        if tensor is not target.tensor:
            with torch.no_grad():
                target.tensor.copy_(tensor)
    # the kernels write behind autograd's back
    torch.autograd.graph.increment_version([t.tensor for t in found if not t.tensor.is_inference()])


def perturb_(found: Sequence[Target], step: Step) -> None:
    _apply(found, [step], _PERTURB)


def shift_(found: Sequence[Target], step: Step) -> None:
    _apply(found, [step], _SHIFT)


def replay_(found: Sequence[Target], steps: Sequence[Step]) -> None:
    _apply(found, steps, _UPDATE)


def _move_rows(
    out: Tensor,
    source: Tensor,
    rows: Tensor | None,
    shape: tuple[int, int],
    apart: int,
    start: int,
    step: Step,
    stream: int,
) -> None:
    count, width = shape
    if not count or not width:
        return
    aligned = start % 128 == 0 and (apart % 128 == 0 or count == 1)
    block = min(BLOCK, max(128, 1 << (width - 1).bit_length()))
    lead = 0 if aligned else 127
    with _device(source):
        lines, terms = step_tables([step], source.device)
        rows_kernel[(-(-(width + lead) // block), count)](
            out,
            source,
            out if rows is None else rows,
            lines,
            terms,
            start,
            apart,
            width,
            _signed(stream),
            OUT=_DTYPES[out.dtype],
            GATHER=rows is not None,
            GAUSSIAN=step.distribution == "gaussian",
            ALIGNED=aligned,
            BLOCK=block,
            **EXACT,
        )
        _used(lines, terms)


def perturbed_copy(out: Tensor, source: Tensor, start: int, step: Step, stream: int) -> None:
    _move_rows(out, source, None, (1, source.numel()), 0, start, step, stream)


def perturbed_rows(out: Tensor, weight: Tensor, rows: Tensor, step: Step, stream: int) -> None:
    _move_rows(out, weight, rows, (rows.numel(), weight.shape[1]), weight.shape[1], 0, step, stream)


def move_panel(out: Tensor, rows: Tensor, start: int, step: Step, stream: int) -> None:
    """`rows` [n, width], unit stride along `width`, moved into the dense `out`; row r begins at start + r * rows.stride(0)."""
    if rows.is_contiguous():
        perturbed_copy(out, rows, start, step, stream)
    else:
        _move_rows(out, rows, None, (rows.shape[0], rows.shape[1]), rows.stride(0), start, step, stream)


def project(found: Sequence[Target], step: Step) -> list[float]:
    totals = np.zeros(len(step.directions))
    for target in found:
        flat = target.tensor.detach().contiguous().view(-1)
        chunks = -(-flat.numel() // 4096)
        if not chunks or not len(totals):
            continue
        sums = torch.empty(len(totals), chunks, 16, dtype=torch.float64, device=flat.device)
        with _device(flat):
            lines, terms = step_tables([step], flat.device)
            project_kernel[(-(-chunks // PROJECT_CHUNKS), len(totals))](
                sums,
                flat,
                flat.numel(),
                chunks,
                lines,
                terms,
                _signed(target.stream),
                GAUSSIAN=step.distribution == "gaussian",
                CHUNKS=PROJECT_CHUNKS,
                **EXACT,
            )
            _used(lines, terms)
        while sums.shape[-1] > 1:
            half = sums.shape[-1] // 2
            sums = sums[..., :half] + sums[..., half:]
        # one after the other, as everywhere: a tree of additions has other bits
        totals = np.cumsum(np.concatenate([totals[:, None], sums[..., 0].cpu().numpy()], axis=1), axis=1)[:, -1]
    return [float(value) for value in totals]


def _tasks(step: Step, pair: bool) -> tuple[list[tuple[int, ...]], bool]:
    """Groups as tasks of `kernels/linear.py`; as pairs where that is wished and every group has one of the other sign."""
    waiting: dict[tuple[int, float], list[int]] = {}
    pairs: list[tuple[int, ...]] = []
    words = _words(step.seed)
    for group, (direction, scale) in enumerate(zip(step.directions, step.coefficients, strict=True)):
        match = waiting.get((direction, -scale))
        if match:
            pairs.append((match.pop(), group, *words, _signed(direction), _bits(-scale)))
        else:
            waiting.setdefault((direction, scale), []).append(group)
    if pair and not any(waiting.values()):
        return pairs, True
    terms = zip(step.directions, step.coefficients, strict=True)
    return [(g, g, *words, _signed(d), _bits(c)) for g, (d, c) in enumerate(terms)], False


def perturbed_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    start: int,
    step: Step,
    stream: int,
    path: str | None = None,
) -> Tensor:
    """`path`: "fused" or "panels", for tests and benchmarks; None takes the one for this number of tokens."""
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantize()
    # the tiles of noise begin where a Philox block does
    unit = 8 if step.distribution == "gaussian" else 128
    fits = start % unit == 0 and (weight.stride(0) % unit == 0 or weight.shape[0] == 1)
    if path is None:
        # float32 products are not for tensor cores, and cuBLAS has the better plain ones
        small = x.shape[1] <= FUSED_TOKENS and x.dtype == weight.dtype != torch.float32
        path = "fused" if fits and small else "panels"
    if path == "panels":
        narrow = x.dtype == weight.dtype
        with _device(x):
            return panels.perturbed_linear(x, weight, bias, start, step, stream, narrow, move_panel, PANEL_BYTES)
    if not fits:
        raise ValueError(
            f"the fused layer needs a start and rows apart by multiples of {unit}; found {start}, {weight.stride(0)}"
        )
    return _fused(x, weight, bias, start, step, stream)


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, start: int, step: Step, stream: int) -> Tensor:
    groups, tokens, width = x.shape
    rows = weight.shape[0]
    if width > 1 and x.stride(2) != 1:
        x = x.contiguous()
    if bias is not None and rows > 1 and bias.stride(-1) != 1:
        bias = bias.contiguous()
    out = torch.empty(groups, tokens, rows, dtype=x.dtype, device=x.device)
    compute = x.dtype if x.dtype == weight.dtype else torch.float32
    gaussian = step.distribution == "gaussian"
    tile = tiles(tokens, gaussian)
    lines, tile["PAIR"] = _tasks(step, bool(tile["PAIR"]))
    with _device(x):
        tasks = _table(tuple(lines), x.device)
        grid = (len(tasks), -(-rows // tile["ROWS"]), -(-tokens // tile["TOKENS"]))
        linear_kernel[grid](
            out,
            x,
            weight,
            out if bias is None else bias,
            tasks,
            tokens,
            rows,
            width,
            x.stride(0),
            x.stride(1),
            weight.stride(0),
            start,
            bias.stride(0) if bias is not None and bias.dim() == 2 else 0,
            _signed(stream),
            BIAS=bias is not None,
            GAUSSIAN=gaussian,
            COMPUTE=_DTYPES[compute],
            **{**EXACT, **tile},
        )
        _used(tasks)
    return out
