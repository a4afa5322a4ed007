"""The arithmetic of ARM's BFDOT (FEAT_BF16, but for FEAT_EBF16's own mode), as the architecture's manual has it, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 2.0**-126


def flushed(values: Tensor) -> Tensor:
    """Numbers that float32 holds as subnormal ones become 0 of their sign."""
    return torch.where(values.abs() < SMALLEST, values * 0.0, values)


def add_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """a + b in float32: where it is not exact, the one of its two neighbours whose last bit is 1."""
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    near = total.float()
    rest = (total - near.double()) + lost
    bits = near.view(torch.int32)
    beyond = (rest < 0) == (near > 0)
    odd = ((bits - beyond.int()) | 1).view(torch.float32)
    return flushed(torch.where(rest != 0, odd, near).double())


def chain(x: Tensor, weight: Tensor) -> Tensor:
    """x [tokens, width] by weight [rows, width], bfloat16 of an even width: one BFDOT after the other, in float32."""
    tokens, rows = flushed(x.double()), flushed(weight.double())
    total = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for k in range(0, x.shape[1], 2):
        first, second = (flushed(tokens[:, j, None] * rows[:, j]) for j in (k, k + 1))
        total = add_to_odd(total, add_to_odd(first, second))
    return total.float()
