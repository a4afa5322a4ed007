"""The launch of `kernels/products.py`: a linear layer whose weight and noise are multiplied apart.

Experimental: never run on a GPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from blockzo.kernels.products import add_parts, part_count, tiles
from blockzo.kernels.products import products as products_kernel
from blockzo.ops.backends.gpu.tables import EXACT, on_device, programs, queue_of, signed, table, tables_of, used
from blockzo.ops.packed import Given
from blockzo.ops.steps import Step

SUM_BLOCK = 1024
NONE = -1
INTERPRETED_AS = 9
"""Major compute capability of the tiles that a CPU interprets."""


def approximate_noise() -> bool:
    """Whether the special-function unit makes Gaussian numbers that are rounded to 16 bits; BLOCKZO_PRODUCT_NOISE=exact asks for
    the contract's own.

    Raises:
        ValueError: it says something else.
    """
    asked = os.environ.get("BLOCKZO_PRODUCT_NOISE") or "approximate"
    if asked not in ("approximate", "exact"):
        raise ValueError(f"BLOCKZO_PRODUCT_NOISE is {asked!r}; expected 'approximate' or 'exact'")
    return asked == "approximate"


@cache
def _major(index: int | None) -> int:
    return torch.cuda.get_device_capability(index)[0]


@dataclass(frozen=True)
class _Plan:
    """What follows from shapes and directions: the same for all layers of one shape, step after step."""

    options: dict[str, Any]
    """Of the launch, and constants of the kernel."""
    tasks: tuple[tuple[int, ...], ...]
    grid: tuple[int]
    bands: int
    parts: int
    span: int
    """Columns of a part."""


@lru_cache(maxsize=256)
def _plan(
    directions: tuple[int, ...] | None,
    sizes: tuple[int, int, int, int],
    gaussian: bool,
    approximate: bool,
    shared: bool,
    bias: bool,
    major: int,
    parts: int | None,
) -> _Plan:
    groups, tokens, rows, width = sizes
    pairs = pairs_of(directions, groups)
    paired = any(second != NONE for _, second in pairs)
    tile = tiles(tokens, gaussian, len(pairs), paired, shared, major)
    tasks = tasks_of(pairs, tile["SLOTS"], tile["SIDES"])
    parts = part_count(rows, width) if parts is None else parts
    bands = -(-rows // tile["ROWS"])
    options = {**EXACT, "BIAS": bias and parts == 1, "GAUSSIAN": gaussian, "APPROXIMATE": approximate, **tile}
    grid = programs(len(tasks), bands, -(-tokens // tile["TOKENS"]), parts)
    return _Plan(options, tasks, grid, bands, parts, -(-width // (128 * parts)) * 128)


def pairs_of(directions: tuple[int, ...] | None, groups: int) -> list[tuple[int, int]]:
    """Groups by twos of one direction; the second is `NONE` where one is left. None: directions of a packed step, of which it is
    not known here which are alike.
    """
    if directions is None:
        return [(group, NONE) for group in range(groups)]
    members: dict[int, list[int]] = {}
    for group, direction in enumerate(directions):
        members.setdefault(direction, []).append(group)
    found = [((*held, NONE)[k], (*held, NONE)[k + 1]) for held in members.values() for k in range(0, len(held), 2)]
    return sorted(found, key=lambda pair: pair[1] == NONE)


def tasks_of(pairs: list[tuple[int, int]], slots: int, sides: int) -> tuple[tuple[int, ...], ...]:
    """A line for each program: the first `sides` groups of so many pairs; the last may have slots of no group."""
    count = -(-len(pairs) // slots)
    padded = pairs + [(NONE, NONE)] * (count * slots - len(pairs))
    return tuple(
        tuple(group for pair in padded[k * slots : (k + 1) * slots] for group in pair[:sides]) for k in range(count)
    )


def products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: int,
    step: Given,
    stream: int,
    parts: int | None = None,
) -> Tensor:
    """`start` and the distance of rows are multiples of what one Philox block serves; x and weight have one 16-bit dtype.

    Args:
        parts: into which K is cut, for benchmarks; None: by the shape of the weight. They decide the order of the sums.
    """
    groups, tokens, width = x.shape
    rows = weight.shape[0]
    group_stride, row_stride, unit = x.stride()
    shared = groups > 1 and group_stride == 0
    if width > 1 and unit != 1:
        x = x[:1].contiguous().expand_as(x) if shared else x.contiguous()
        group_stride, row_stride, _ = x.stride()
    bias_group = 0
    if bias is not None:
        if rows > 1 and bias.stride(-1) != 1:
            bias = bias.contiguous()
        bias_group = bias.stride(0) if bias.dim() == 2 else 0
    directions = step.directions if isinstance(step, Step) else None
    major = _major(x.device.index) if x.is_cuda else INTERPRETED_AS
    sizes, gaussian = (groups, tokens, rows, width), step.distribution == "gaussian"
    approximate = gaussian and approximate_noise()
    plan = _plan(directions, sizes, gaussian, approximate, shared, bias is not None, major, parts)
    device = x.device
    out = torch.empty((groups, tokens, rows), dtype=x.dtype, device=device)
    sums = out if plan.parts == 1 else torch.empty((plan.parts, *out.shape), dtype=torch.float32, device=device)
    with on_device(x):
        queue = queue_of(device)
        tasks, numbers = table(plan.tasks, queue), tables_of(step, queue)
        products_kernel[plan.grid](
            sums,
            x,
            weight,
            out if bias is None else bias,
            tasks,
            *numbers,
            len(plan.tasks),
            plan.bands,
            groups,
            tokens,
            rows,
            width,
            plan.parts,
            plan.span,
            group_stride,
            row_stride,
            weight.stride(0),
            start,
            bias_group,
            signed(stream),
            **plan.options,
        )
        if plan.parts > 1:
            blocks = -(-rows // SUM_BLOCK)
            add_parts[programs(groups * tokens, blocks)](
                out,
                sums,
                out if bias is None else bias,
                blocks,
                groups * tokens,
                tokens,
                rows,
                plan.parts,
                bias_group,
                BIAS=bias is not None,
                BLOCK=SUM_BLOCK,
                **EXACT,
            )
        used(tasks, *numbers)
    return out
