"""`perturbed_linear` by moved panels of the weight and torch's matrix product; and which way is fastest for which call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from blockzo.ops.packed import Given, PackedStep
from blockzo.ops.quantized import QuantizedWeight

PATHS = ("tiles", "narrow tiles", "panels", "rounded panels", "narrow panels")
"""The kernel that moves and multiplies in one; the same with moved weights rounded to their dtype (by a matrix unit, AMX, or by
products of 16-bit pairs, where the CPU has them and they fit); float32 panels; the same of rounded weights; panels in the
16-bit dtype of weight and x.
"""

PANEL_BYTES = 10 << 20
"""Every product packs x again, so few large panels beat many that stay in a second-level cache: OPT-125M at 1,024 tokens took
1.23 times the plain forwards with 2 MiB, 1.13 with 8, 1.06 with 16. A weight of 768 x 3,072 still fits in one.
"""
MovePanel = Callable[[Tensor, Tensor, int, Any, int], None]
"""out, rows of the weight, index of the first, step of one direction, stream."""
TILE_TOKENS = {"amx": 384, "avx512": 384, "avx2": 256, "neon-bf16": 256, "neon": 256, "baseline": 64}
"""Tokens a group below which the fused kernel is the faster way, by instruction set; four times these for 16-bit weights.

Measured where the product of torch uses the same instructions. MKL uses AVX-512 on Intel's CPUs only: on an AMD EPYC (Zen 5) it
does 105 GFLOP/s a core at any size and the fused kernel 200, so there the kernel is always the faster way.
"""
NARROW_TOKENS = 48
"""Tokens a group from which rounded moves are, where the CPU multiplies 16-bit numbers."""
PAIR_TOKENS = 17, 384
"""First and last number of tokens a group for which the kernel by 16-bit pairs is the fastest way, with AVX512-BF16 and no AMX.
Below, sums over signs are as fast and round no move; above, torch's product of 16-bit panels is.
"""


WITHOUT_16_BIT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA under which oneDNN emulates 16-bit products."""


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies numbers of this 16-bit dtype itself, and torch's oneDNN may use it."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_16_BIT:
        return False
    names = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        torch.float16: ("_is_amx_fp16_supported",),
    }
    return any(getattr(torch.cpu, name, lambda: False)() for name in names.get(dtype, ()))


def choose_path(
    x: Tensor, weight: Tensor | QuantizedWeight, start: int, isa: str, vendor: str, moved: str = "auto"
) -> str:
    """By the tokens of one group, so that groups in one call have the bits of calls of their own.

    Args:
        isa, vendor: of the CPU, as `_native.chosen()` and `_native.vendor()` name them.
        moved: one of `MOVED`.
    """
    if isinstance(weight, QuantizedWeight):
        return "tiles"
    tokens, rounded = x.shape[1], moved == "rounded" and weight.dtype != torch.float32
    if moved != "float32" and x.dtype == weight.dtype and multiplies(weight.dtype):
        first, few = NARROW_TOKENS, isa == "amx" and tokens <= TILE_TOKENS[isa] and _fits_matrix_unit(weight, start)
        if isa == "avx512" and _fits_pairs(weight):
            first, few = PAIR_TOKENS[0], tokens <= PAIR_TOKENS[1]
        if tokens >= first or (rounded and few):
            return "narrow tiles" if few else "narrow panels"
    # half the multiplications of a product in float32; "auto" does not round there, as no such CPU was measured
    if rounded and isa == "neon-bf16" and x.dtype == weight.dtype and _fits_pairs(weight):
        return "narrow tiles"
    most = TILE_TOKENS[isa] * (1 if weight.dtype == torch.float32 else 4)
    always = isa in ("avx512", "amx") and vendor != "intel" and torch.backends.mkl.is_available()
    if always or tokens < most:
        return "narrow tiles" if rounded else "tiles"
    return "rounded panels" if rounded else "panels"


def _fits_matrix_unit(weight: Tensor, start: int) -> bool:
    """What a matrix unit (`by_tiles` in csrc/cpu/linear.cpp) asks of rounded weights, whatever their noise."""
    width = weight.shape[1]
    return weight.dtype == torch.bfloat16 and width % 32 == 0 and weight.stride(0) == width and start % 16 == 0


def _fits_pairs(weight: Tensor) -> bool:
    """What the kernel by 16-bit pairs (`by_pairs` in csrc/cpu/linear.cpp) asks of rounded weights."""
    return weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0


def _moves(step: Given) -> Iterator[tuple[Given, list[int]]]:
    """Each different move of the weight, with its groups; which of packed ones are alike is not known here."""
    if isinstance(step, PackedStep):
        yield from ((step.term(group), [group]) for group in range(len(step.terms)))
        return
    found: dict[tuple[int, float], list[int]] = {}
    for group, (direction, scale) in enumerate(zip(step.directions, step.coefficients, strict=True)):
        found.setdefault((direction if scale else -1, scale), []).append(group)
    for (direction, scale), groups in found.items():
        yield replace(step, directions=(max(direction, 0),), coefficients=(scale,)), groups


_kept = threading.local()


def _scratch(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One buffer a thread, kept: fresh pages for every layer would cost more than its noise. A GPU's memory is kept by torch."""
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    held: Tensor | None = getattr(_kept, "buffer", None)
    if held is None or held.numel() < count * dtype.itemsize:
        held = _kept.buffer = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    return held[: count * dtype.itemsize].view(dtype)


def perturbed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: int,
    step: Given,
    stream: int,
    narrow: bool,
    move_panel: MovePanel,
    panel_bytes: int = PANEL_BYTES,
    rounded: bool = False,
) -> Tensor:
    """x [G, T, K], weight [N, K]: every move of one panel before the next panel is read.

    Args:
        narrow: multiply in the dtype of `weight`, which is that of `x`; else in float32.
        rounded: moved weights are rounded to the dtype of `weight` before they are multiplied in float32.
        move_panel: the backend's.
    """
    groups, tokens, width = x.shape
    rows, apart = weight.shape[0], weight.stride(0)
    dtype = weight.dtype if narrow else torch.float32
    wide = x.to(dtype)
    out = torch.empty(groups, tokens, rows, dtype=dtype, device=x.device)
    moves = list(_moves(step))
    count = max(1, -(-rows * width * dtype.itemsize // panel_bytes))
    height = -(-rows // count)
    held = weight.dtype if rounded else dtype
    scratch = _scratch(height * width, held, x.device).view(height, width)
    for first in range(0, rows, height):
        part = weight[first : first + height]
        for move, members in moves:
            panel = scratch[: part.shape[0]]
            if isinstance(move, PackedStep) or move.coefficients[0]:
                move_panel(panel, part, start + first * apart, move, stream)
            else:
                panel = part
            panel = panel.to(dtype)
            for group in members:
                target = out[group, :, first : first + height]
                if bias is None:
                    torch.mm(wide[group], panel.t(), out=target)
                else:
                    line = bias if bias.dim() == 1 else bias[group]
                    torch.addmm(line[first : first + height].to(dtype), wide[group], panel.t(), out=target)
    return out.to(x.dtype)
