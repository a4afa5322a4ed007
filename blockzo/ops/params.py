"""The tensors an operation works on: canonical names, streams, and every check that comes before the first write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blockzo.noise import canonical_name, stream_id

Params = Mapping[str, Tensor] | nn.Module
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Target:
    """One tensor and the stream of its noise."""

    name: str
    stream: int
    tensor: Tensor


def named_tensors(params: Params, trainable_only: bool = True) -> dict[str, Tensor]:
    """Canonical name -> tensor; a tied tensor appears once, under the first of its names."""
    if isinstance(params, nn.Module):
        pairs: list[tuple[str, Tensor]] = [
            (n, p) for n, p in params.named_parameters() if p.requires_grad or not trainable_only
        ]
    elif isinstance(params, Mapping):
        pairs = list(params.items())
    else:
        raise ValueError(f"params is a {type(params).__name__}; expected a mapping of names to tensors or an nn.Module")
    result: dict[str, Tensor] = {}
    places: dict[tuple[object, ...], str] = {}
    for given, tensor in pairs:
        if not isinstance(given, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"params holds {given!r}: {type(tensor).__name__}; expected name -> tensor")
        name = canonical_name(given)
        place: tuple[object, ...] = (id(tensor),)
        if tensor.layout == torch.strided and tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place in places:
            continue
        if name in result:
            raise ValueError(f"two tensors have the canonical name {name!r}; give each its own name")
        result[name] = tensor
        places[place] = name
    return result


def targets(params: Params) -> list[Target]:
    """Checked targets of an operation that writes.

    Raises:
        ValueError: an unsupported dtype, layout or device, overlapping memory, or two names with one CRC.
    """
    result: list[Target] = []
    streams: dict[int, str] = {}
    for name, tensor in named_tensors(params).items():
        check_tensor(name, tensor)
        stream = stream_id(name)
        if stream in streams:
            raise ValueError(
                f"parameters {streams[stream]!r} and {name!r} have the same stream {stream:#010x} (crc32 of the name); "
                "rename one of them, or both would get the same noise"
            )
        streams[stream] = name
        result.append(Target(name, stream, tensor))
    check_disjoint(result)
    return result


def check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"parameter {name!r} has dtype {tensor.dtype}; expected float32, bfloat16 or float16 "
            "(convert it, or freeze it with requires_grad_(False))"
        )
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(
            f"parameter {name!r} is {tensor.layout} on {tensor.device}; expected a strided tensor in memory"
        )
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(
            f"parameter {name!r} is an expanded view whose elements share memory; pass the tensor it expands"
        )


def check_disjoint(found: list[Target]) -> None:
    """Two tensors that share memory would be moved twice (and by two threads at once)."""
    first: dict[int, str] = {}
    for target in found:
        if target.tensor.numel() and target.tensor.device.type == "cpu":
            other = first.setdefault(target.tensor.data_ptr(), target.name)
            if other != target.name:
                raise overlap(other, target.name)
    ranges = sorted(
        (t.tensor.data_ptr(), t.tensor.data_ptr() + t.tensor.numel() * t.tensor.element_size(), t.name)
        for t in found
        if t.tensor.numel() and t.tensor.is_contiguous() and t.tensor.device.type == "cpu"
    )
    for (_, end, name), (begin, _, other) in zip(ranges, ranges[1:], strict=False):
        if begin < end:
            raise overlap(name, other)


def overlap(name: str, other: str) -> ValueError:
    return ValueError(f"parameters {name!r} and {other!r} overlap in memory; pass the tensor that holds both, once")


def check_finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}; expected a finite float32 number (weights were left as they were)")
    return value
