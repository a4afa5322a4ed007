"""The launch of `kernels/linear.py`: a linear layer whose weight is moved in registers while it is multiplied.

Experimental: never run on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockzo.kernels.linear import linear as linear_kernel
from blockzo.kernels.linear import tiles
from blockzo.ops.backends.gpu.tables import DTYPES, EXACT, on_device, queue_of, signed, step_tables, table, used
from blockzo.ops.packed import Given
from blockzo.ops.steps import Step


def _tasks(step: Given, groups: int, pair: bool) -> tuple[tuple[tuple[int, int, int], ...], bool]:
    """Groups as tasks of `kernels/linear.py`; as pairs where that is wished and every group has one of the other sign."""
    if pair and isinstance(step, Step):
        waiting: dict[tuple[int, float], list[int]] = {}
        pairs = []
        for group, (direction, scale) in enumerate(zip(step.directions, step.coefficients, strict=True)):
            match = waiting.get((direction, -scale))
            if match:
                first = match.pop()
                pairs.append((first, group, first))
            else:
                waiting.setdefault((direction, scale), []).append(group)
        if not any(waiting.values()):
            return tuple(pairs), True
    return tuple((group, group, group) for group in range(groups)), False


def fused(x: Tensor, weight: Tensor, bias: Tensor | None, start: int, step: Given, stream: int) -> Tensor:
    """`start` and the distance of rows are multiples of what one Philox block serves."""
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
    lines, tile["PAIR"] = _tasks(step, groups, bool(tile["PAIR"]))
    with on_device(x):
        tasks, numbers = table(lines, queue_of(x.device)), step_tables([step], queue_of(x.device))
        grid = (len(tasks), -(-rows // tile["ROWS"]), -(-tokens // tile["TOKENS"]))
        linear_kernel[grid](
            out,
            x,
            weight,
            out if bias is None else bias,
            tasks,
            *numbers,
            tokens,
            rows,
            width,
            x.stride(0),
            x.stride(1),
            weight.stride(0),
            start,
            bias.stride(0) if bias is not None and bias.dim() == 2 else 0,
            signed(stream),
            BIAS=bias is not None,
            GAUSSIAN=gaussian,
            COMPUTE=DTYPES[compute],
            **{**EXACT, **tile},
        )
        used(tasks, *numbers)
    return out
