"""Floating-point operations of torch functions, by formula: a multiply and an add are two."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockzo.perturb.quantized_linear import quantized_linear


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> int:
    return 2 * result.numel() * _argument(args, kwargs, 0, "input").shape[-1]


def _matmul(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> int:
    return 2 * result.numel() * _argument(args, kwargs, 0, "input", "self").shape[-1]


def _addmm(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> int:
    return 2 * result.numel() * _argument(args, kwargs, 1, "mat1", "batch1", "other").shape[-1]


def _attention(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> int:
    query, key = _argument(args, kwargs, 0, "query"), _argument(args, kwargs, 1, "key")
    value = _argument(args, kwargs, 2, "value")
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> int:
    weight = _argument(args, kwargs, 1, "weight")
    return 2 * result.numel() * prod(weight.shape[1:])


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, *names: str) -> Tensor:
    value = args[place] if len(args) > place else next(kwargs[name] for name in names if name in kwargs)
    assert isinstance(value, Tensor)
    return value


Formula = Callable[[tuple[Any, ...], dict[str, Any], Tensor], int]

FORMULAS: dict[Callable[..., Any], Formula] = {
    F.linear: _linear,
    quantized_linear: _linear,
    F.scaled_dot_product_attention: _attention,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.addmm: _addmm,
    torch.baddbmm: _addmm,
    torch.Tensor.addmm: _addmm,
    torch.Tensor.baddbmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.Tensor.mm, torch.Tensor.bmm), _matmul),
    torch.Tensor.__rmatmul__: _addmm,
}
"""FLOPs of one call that gave a result: matrix products, attention and convolutions, as torch's FlopCounterMode counts.

Element-wise work is not counted, nor is what happens inside functions that torch composes of others in Python
(`multi_head_attention_forward`).
"""
