"""What tests of products by moved weights share."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
STREAM = 77
DIRECTIONS, SCALES = [4, 4, 0, 9, 9, 4, 0, 2**32 - 2], [0.5, -0.5, 0.25, 0.0, 1e-3, 0.5, 0.25, -2.0]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
