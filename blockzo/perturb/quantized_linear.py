"""Linear layers on a frozen base of 8 or 4 bits, for zeroth-order training of adapters beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from blockzo.noise import Noise
from blockzo.ops.linear import perturbed_linear
from blockzo.ops.quantized import QuantizedWeight, quantize

_NO_NOISE = Noise(0)


def _multiplied(
    input: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, bits: int, rows: int, width: int
) -> Tensor:
    return perturbed_linear(input, QuantizedWeight(data, scale, bits, (rows, width)), bias, _NO_NOISE, 0, [0], [0.0])


def _grouped(info: Any, dims: tuple[int | None, ...], input: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """A group is more rows of the input, and rows do not know of each other; the base has none."""
    place = dims[0]
    assert place is not None and not any(dim is not None for dim in dims[1:])
    return _linear(input.movedim(place, 0).contiguous(), *rest), 0


_LIBRARY = torch.library.Library("blockzo_layers", "DEF")
_LIBRARY.define(
    "quantized_linear(Tensor input, Tensor data, Tensor scale, Tensor? bias, int bits, int rows, int width) -> Tensor"
)
_LIBRARY.impl("quantized_linear", _multiplied, "CompositeExplicitAutograd")
_linear = torch.ops.blockzo_layers.quantized_linear
torch.library.register_fake(
    "blockzo_layers::quantized_linear",
    lambda input, data, scale, bias, bits, rows, width: input.new_empty((*input.shape[:-1], rows)),
    lib=_LIBRARY,
)
torch.library.register_vmap("blockzo_layers::quantized_linear", _grouped, lib=_LIBRARY)


def quantized_linear(input: Tensor, *rest: Any) -> Tensor:
    """The layer's operation as a torch function, so that a perturbed forward counts its FLOPs."""
    if has_torch_function_unary(input):
        seen: Tensor = handle_torch_function(quantized_linear, (input,), input, *rest)
        return seen
    made: Tensor = _linear(input, *rest)
    return made


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
        return quantized_linear(input, self.data, self.scale, self.bias, self.bits, self.out_features, self.in_features)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> QuantizedLinear:
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.data.device)  # model.to(bfloat16) is meant for activations, not for these
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, bias={self.bias is not None}"
