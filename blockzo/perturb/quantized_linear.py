"""Linear layers on a frozen base of 8 or 4 bits, for zeroth-order training of adapters beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockzo.noise import Noise
from blockzo.ops.linear import perturbed_linear
from blockzo.ops.quantized import QuantizedWeight, quantize

_NO_NOISE = Noise(0)


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is frozen in 8 or 4 bits and dequantised while it is multiplied.

    Shapes as `nn.Linear`: [..., in_features] -> [..., out_features] in the dtype of the input; computed in float32. The base is
    held in buffers: it is saved with the model, and no trainer finds a weight in it.
    """

    data: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bits = weight.bits
        self.out_features, self.in_features = weight.shape
        self.register_buffer("data", weight.data)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int = 8) -> QuantizedLinear:
        """The layer with its weight rounded to `bits`; `linear` is left as it is."""
        bias = linear.bias
        return cls(quantize(linear.weight, bits), None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> QuantizedWeight:
        return QuantizedWeight(self.data, self.scale, self.bits, (self.out_features, self.in_features))

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad:  # the kernel has no backward
            bias = None if self.bias is None else self.bias.to(input.dtype)
            return F.linear(input, self.weight.dequantize().to(input.dtype), bias)
        return perturbed_linear(input, self.weight, self.bias, _NO_NOISE, 0, [0], [0.0])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> QuantizedLinear:
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.data.device)  # model.to(bfloat16) is meant for activations, not for these
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, bias={self.bias is not None}"
