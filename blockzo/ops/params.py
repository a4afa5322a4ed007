"""The tensors an operation works on: canonical names, streams, and every check that comes before the first write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from blockzo.noise import canonical_name, stream_id
from blockzo.ops import distributed
from blockzo.ops.distributed import Spread, is_dtensor
from blockzo.ops.overlap import check_disjoint
from blockzo.ops.shards import Place, Shard, place_of

Params = (
    Mapping[str, Tensor] | Mapping[str, Shard] | Mapping[str, Tensor | Shard] | Sequence[Tensor | Shard] | nn.Module
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Target:
    """One tensor in this process's memory and the stream of its noise.

    `place`: where its elements lie in the whole tensor; None where it is the whole. `spread` and `owner`: of a DTensor.
    `per_weight`: what its noise is multiplied by, of the shape of `tensor` (expanded, where it is one number): float32, bfloat16,
    float16 or bool.
    """

    name: str
    stream: int
    tensor: Tensor
    place: Place | None = None
    spread: Spread | None = None
    owner: Tensor | None = None
    per_weight: Tensor | None = None


def named_tensors(params: Params, trainable_only: bool = True) -> dict[str, Tensor]:
    """Canonical name -> tensor; a tied tensor appears once, under the first of its names."""
    result: dict[str, Tensor] = {}
    for name, tensor in _named(params, trainable_only).items():
        if isinstance(tensor, Shard):
            raise ValueError(f"params holds {name!r}: a Shard, whose whole is not known here; expected whole tensors")
        result[name] = tensor
    return result


def _named(params: Params, trainable_only: bool = True) -> dict[str, Tensor | Shard]:
    pairs: list[tuple[str, Tensor | Shard]]
    if isinstance(params, nn.Module):
        distributed.reshard(params)
        pairs = [(n, p) for n, p in params.named_parameters() if p.requires_grad or not trainable_only]
    elif isinstance(params, Mapping):
        pairs = list(params.items())
    elif isinstance(params, (list, tuple)):
        pairs = [(str(place), tensor) for place, tensor in enumerate(params)]
    else:
        raise ValueError(
            f"params is a {type(params).__name__}; expected a mapping of names to tensors, an nn.Module, or a list of tensors"
        )
    result: dict[str, Tensor | Shard] = {}
    places: dict[tuple[object, ...], str] = {}
    for given, tensor in pairs:
        if not isinstance(given, str) or not isinstance(tensor, (Tensor, Shard)):
            raise ValueError(f"params holds {given!r}: {type(tensor).__name__}; expected name -> tensor")
        name = canonical_name(given)
        place = _identity(tensor)
        if place in places:
            continue
        if name in result:
            raise ValueError(f"two tensors have the canonical name {name!r}; give each its own name")
        result[name] = tensor
        places[place] = name
    return result


def _identity(tensor: Tensor | Shard) -> tuple[object, ...]:
    """Equal for two tensors that are one."""
    held = tensor
    if isinstance(tensor, UninitializedParameter):
        return (id(tensor),)
    if isinstance(tensor, Tensor) and is_dtensor(tensor):
        held = distributed.local_tensor(tensor)
    if isinstance(held, Shard) or held.layout != torch.strided or not held.numel() or without_address(held):
        return (id(tensor),)
    return (held.device, held.data_ptr(), held.dtype, held.shape, held.stride())


def without_address(tensor: Tensor) -> bool:
    """Has it no memory of its own: a tensor of the device meta, a fake one, or one that is made of others?"""
    return tensor.is_meta or type(tensor).__name__ == "FakeTensor" or is_traceable_wrapper_subclass(tensor)


def targets(params: Params) -> list[Target]:
    """Checked targets of an operation that writes.

    Raises:
        ValueError: an unsupported dtype, layout, device or placement, overlapping memory, or two names with one CRC.
    """
    if not isinstance(params, nn.Module):
        return _targets(params)
    distributed.reshard(params)
    given = [(name, parameter) for name, parameter in params.named_parameters() if parameter.requires_grad]
    key = [_facts(*pair) for pair in given]
    known = _checked.get(params)
    if known is not None and known[0] == key:
        return [Target(name, stream, given[place][1]) for name, stream, place in known[1]]
    found = _targets(params)
    if None not in key:
        places = {id(parameter): place for place, (_, parameter) in enumerate(given)}
        _checked[params] = key, [(t.name, t.stream, places[id(t.tensor)]) for t in found]
    return found


_checked: WeakKeyDictionary[nn.Module, tuple[Any, list[tuple[str, int, int]]]] = WeakKeyDictionary()
"""What the last check of a model looked at, and name, stream and number of each target: a step asks several times."""


def _facts(name: str, tensor: Tensor) -> tuple[object, ...] | None:
    """All that a check looks at; None where it looks at more, as of a DTensor."""
    if isinstance(tensor, UninitializedParameter) or is_dtensor(tensor):
        return None
    if tensor.layout != torch.strided or without_address(tensor):
        return None
    return name, id(tensor), tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _targets(params: Params) -> list[Target]:
    result: list[Target] = []
    streams: dict[int, str] = {}
    for name, tensor in _named(params).items():
        target = _target(name, tensor)
        check_tensor(name, target.tensor)
        if target.stream in streams:
            raise ValueError(
                f"parameters {streams[target.stream]!r} and {name!r} have the same stream {target.stream:#010x} (crc32 of the "
                "name); rename one of them, or both would get the same noise"
            )
        streams[target.stream] = name
        result.append(target)
    check_disjoint([(target.name, target.tensor) for target in result])
    return result


def _target(name: str, tensor: Tensor | Shard) -> Target:
    if isinstance(tensor, Shard):
        place = place_of(tensor.tensor.shape, tensor.offset, tensor.strides, tensor.shape)
        return Target(name, stream_id(name), tensor.tensor, place)
    if is_dtensor(tensor):
        part = distributed.part_of(name, tensor)
        return Target(name, stream_id(name), part.tensor, part.place, part.spread, tensor)
    return Target(name, stream_id(name), tensor)


def whole_targets(model: nn.Module, what: str) -> list[Target]:
    """The targets of a model that is not distributed.

    Raises:
        ValueError: a parameter is a DTensor.
    """
    found = targets(model)
    for target in found:
        if target.spread is not None:
            raise ValueError(
                f"parameter {target.name!r} is a DTensor; {what} expects parameters that are whole in this process: move the "
                'shards in place instead: blockzo.DistributedZO(split="batch", evaluate="in_place")'
            )
    return found


def check_tensor(name: str, tensor: Tensor) -> None:
    if is_dtensor(tensor):
        raise ValueError(f"parameter {name!r} is a DTensor; expected a plain tensor (its to_local())")
    if isinstance(tensor, UninitializedParameter):
        raise ValueError(
            f"parameter {name!r} has no shape yet (a lazy module's); expected one with values: run the model once on a batch"
        )
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"parameter {name!r} has dtype {tensor.dtype}; expected float32, bfloat16 or float16 "
            "(convert it, or freeze it with requires_grad_(False))"
        )
    if tensor.layout != torch.strided or without_address(tensor):
        raise ValueError(
            f"parameter {name!r} is {tensor.layout} on {tensor.device}, a {type(tensor).__name__}; expected a strided tensor in "
            "memory of its own (freeze it with requires_grad_(False))"
        )
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(
            f"parameter {name!r} is an expanded view whose elements share memory; pass the tensor it expands"
        )


def check_finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}; expected a finite float32 number (weights were left as they were)")
    return value
