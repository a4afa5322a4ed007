"""Weights of 8 or 4 bits with one scale a row: a frozen base that the linear operation dequantises while it multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST = {8: 127, 4: 7}


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Element (n, k) is `q[n, k] * scale[n]` in float32.

    Args:
        data: contiguous. 8 bits: int8 [N, K]. 4 bits: uint8 [N, ceil(K / 2)], `q + 8` of even columns in the low half of a byte,
            of odd columns in the high half.
        scale: float32 [N], contiguous.
        bits: 8 or 4.
        shape: (N, K).

    Raises:
        ValueError: dtypes or shapes do not fit each other.
    """

    data: Tensor
    scale: Tensor
    bits: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.bits not in _LARGEST:
            raise ValueError(f"bits is {self.bits!r}; expected 8 or 4")
        rows, width = self.shape
        held = (rows, width) if self.bits == 8 else (rows, (width + 1) // 2)
        dtype = torch.int8 if self.bits == 8 else torch.uint8
        if self.data.dtype != dtype or tuple(self.data.shape) != held or not self.data.is_contiguous():
            raise ValueError(
                f"data is {self.data.dtype} of shape {tuple(self.data.shape)}; expected contiguous {dtype} of shape {held} for "
                f"{self.bits} bits and a weight of {rows} x {width}"
            )
        scale = self.scale
        if scale.dtype != torch.float32 or tuple(scale.shape) != (rows,) or not scale.is_contiguous():
            raise ValueError(
                f"scale is {scale.dtype} of shape {tuple(scale.shape)}; expected contiguous float32 of shape ({rows},)"
            )
        if scale.device != self.data.device:
            raise ValueError(f"data is on {self.data.device}, scale on {scale.device}; expected one device")

    @property
    def device(self) -> torch.device:
        return self.data.device

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        q = self.data
        if self.bits == 4:
            q = torch.stack((q & 15, q >> 4), dim=-1).flatten(1)[:, : self.shape[1]].to(torch.int8) - 8
        return q.float() * self.scale.unsqueeze(1)


def quantize(weight: Tensor, bits: int = 8) -> QuantizedWeight:
    """Symmetric, one scale an output channel: scale = max |w| / (127 or 7), q = round(w / scale).

    Args:
        weight: [N, K], floating point and finite.

    Raises:
        ValueError: `bits` is not 8 or 4, or the weight is not such a tensor.
    """
    if bits not in _LARGEST:
        raise ValueError(f"bits is {bits!r}; expected 8 or 4")
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight is {weight.dtype} of shape {tuple(weight.shape)}; expected floating point [N, K]")
    values = weight.detach().float()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("weight holds infinities or NaNs; expected finite numbers, which a scale can be found for")
    rows, width = values.shape
    scale = values.abs().amax(1) / _LARGEST[bits] if width else values.new_zeros(rows)
    # a row of zeros, or one so small that its scale is no number, is all zeros
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(1)
    q = torch.round(values / divisor).clamp(-_LARGEST[bits], _LARGEST[bits]).to(torch.int8)
    if bits == 4:
        halves = torch.nn.functional.pad(q + 8, (0, width % 2)).to(torch.uint8).view(rows, -1, 2)
        q = halves[..., 0] | halves[..., 1] << 4
    return QuantizedWeight(q.contiguous(), scale.contiguous(), bits, (rows, width))
