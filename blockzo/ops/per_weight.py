"""Noise with a scale for every weight or every tensor: masks, and how far each weight may go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blockzo.noise import canonical_name
from blockzo.ops import distributed
from blockzo.ops.distributed import is_dtensor
from blockzo.ops.params import DTYPES, Target, without_address

PerWeight = Mapping[str, float | Tensor]
"""Name of a parameter -> a number, or a tensor that broadcasts to its shape (of a Shard: to that of the part; of a DTensor: one
that is placed as it is). A parameter without a name here has a scale of 1."""


def with_scales(found: Sequence[Target], per_weight: PerWeight | None) -> list[Target]:
    """The targets with what `per_weight` has for them.

    Raises:
        ValueError: a name of no parameter, a number that is not finite, another dtype or device, a shape that does not broadcast.
    """
    if not per_weight:
        return list(found)
    wanted = {canonical_name(name): value for name, value in per_weight.items()}
    unknown = sorted(set(wanted) - {target.name for target in found})
    if unknown:
        raise ValueError(
            f"per_weight has {unknown[0]!r}, which is no parameter here; expected names among "
            f"{', '.join(repr(target.name) for target in found[:5])}{', ...' if len(found) > 5 else ''}"
        )
    memory = {t.tensor.untyped_storage().data_ptr() for t in found}
    return [replace(t, per_weight=_scales(t, wanted[t.name], memory)) if t.name in wanted else t for t in found]


def _scales(target: Target, value: float | Tensor, memory: set[int]) -> Tensor:
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise ValueError(f"per_weight[{target.name!r}] is {value}; expected a finite number or a tensor")
        value = torch.tensor(float(value), dtype=torch.float32, device=target.tensor.device)
    value = _local(target, value).detach()
    if value.dtype not in (*DTYPES, torch.bool) or value.layout != torch.strided or without_address(value):
        raise ValueError(
            f"per_weight[{target.name!r}] is {value.dtype}, a {type(value).__name__}; expected a plain tensor of float32, "
            "bfloat16, float16 or bool"
        )
    if value.device != target.tensor.device:
        raise ValueError(
            f"per_weight[{target.name!r}] is on {value.device}; expected {target.tensor.device}, as the parameter"
        )
    try:
        value = value.expand(target.tensor.shape)
    except RuntimeError:
        raise ValueError(
            f"per_weight[{target.name!r}] has shape {tuple(value.shape)}; expected one that broadcasts to "
            f"{tuple(target.tensor.shape)}, that of the parameter{' or its part' if target.place else ''}"
        ) from None
    # what is read must not be what is written
    return value.clone() if value.numel() and value.untyped_storage().data_ptr() in memory else value


def _local(target: Target, value: Tensor) -> Tensor:
    """Of a DTensor the scales of this rank's part."""
    if is_dtensor(value):
        part = distributed.part_of(target.name, value)
        whole = target.owner is not None and value.shape == target.owner.shape
        if not whole or part.spread != target.spread or part.place != target.place:
            raise ValueError(
                f"per_weight[{target.name!r}] is a DTensor that is placed otherwise than the parameter; expected its mesh, "
                "placements and shape"
            )
        return part.tensor
    if target.owner is not None and value.numel() > 1:
        raise ValueError(
            f"parameter {target.name!r} is a DTensor and per_weight a plain tensor of shape {tuple(value.shape)}; expected a "
            "number, or a DTensor that is placed as the parameter"
        )
    return value
