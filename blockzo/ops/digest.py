"""A digest of weights: equal digests mean equal names, dtypes, shapes and bits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from blockzo.noise import canonical_name
from blockzo.ops import distributed
from blockzo.ops.params import Params, named_tensors

PREFIX = "bz1-"
_PIECE = 1 << 24
_PACKED = {torch.int8, torch.uint8, torch.int32} | {
    getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2") if hasattr(torch, name)
}
"""Dtypes in which quantised layers keep their weights."""


def digest(params: Params) -> str:
    """Order-independent SHA-256 over names, dtypes, shapes and bits (row-major, little-endian) of all parameters.

    For a module, frozen parameters are included, and so are the buffers of its quantised layers, which are their weights: layers
    without a parameter `weight` that hold a packed buffer and one of scales. Other buffers are not. The result begins
    with `bz1-`, the version of this definition: SHA-256 of the lines `name dtype shape sha256-of-bytes`, sorted by name.

    What hangs on a quantised parameter (bitsandbytes) counts too, under the parameter's name: the tensors of its `quant_state`,
    and one line for the rest of it; tensors that are attributes of a parameter of 8 bits or fewer, as `SCB` is, unless they
    are the same memory. Where a layer's forward takes them from its weight to itself, only the digest of the module finds them.
    (bitsandbytes repacks weights of 4 bits, with rounded scales, at the first forward in evaluation mode on CPUs with bfloat16
    instructions: that is another digest, as it is other weights.)

    A tensor that is made of others (torchao) has the hash of its type, of what it says of itself and of those others. DTensors
    have the digest of the whole tensors, which are gathered one at a time: all ranks must call this.

    Raises:
        ValueError: a `Shard`, a DTensor whose placement is not Shard or Replicate, or a tensor without bits of its own (meta,
            fake, sparse); a `quant_state` that does not say what it holds (`as_dict`).
    """
    tensors = named_tensors(params, trainable_only=False)
    if isinstance(params, nn.Module):
        tensors |= _quantised(params)
    hung, notes = _hanging(params, tensors)
    tensors |= hung
    for name, tensor in tensors.items():
        _check(name, tensor)
    if any(map(distributed.is_dtensor, tensors.values())):
        hashes = [tensor_hash(_whole(name, tensor)) for name, tensor in tensors.items()]
    else:
        # a thread of its own would copy on the default stream, beside the caller's, which may still write
        streams = {t.device: torch.cuda.current_stream(t.device) for t in tensors.values() if _on_gpu(t)}

        def hashed(tensor: Tensor) -> str:
            with torch.cuda.stream(streams[tensor.device]) if tensor.device in streams else nullcontext():
                return tensor_hash(tensor)

        with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
            hashes = list(pool.map(hashed, tensors.values()))
    lines = sorted(
        f"{name} {_dtype(tensor)} {'x'.join(map(str, tensor.shape))} {value}\n"
        for (name, tensor), value in zip(tensors.items(), hashes, strict=True)
    )
    lines = sorted([*lines, *notes])
    return PREFIX + hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _quantised(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> buffer, of layers that keep their weights in buffers."""
    found = {}
    for prefix, module in model.named_modules():
        own = dict(module.named_buffers(recurse=False))
        packed = any(b.dtype in _PACKED and b.dim() for b in own.values())
        scaled = any("scale" in name and b.is_floating_point() for name, b in own.items())
        if packed and scaled and dict(module.named_parameters(recurse=False)).get("weight") is None:
            found.update({canonical_name(f"{prefix}.{name}".removeprefix(".")): b for name, b in own.items()})
    return found


def _hanging(params: Params, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without which a quantised parameter says nothing, by name; and of each `quant_state` a line for the rest."""
    owners: dict[int, nn.Module] = {}
    if isinstance(params, nn.Module):
        owners = {id(p): module for module in params.modules() for p in module.parameters(recurse=False)}
    found: dict[str, Tensor] = {}
    notes = []
    for name, tensor in tensors.items():
        owner = owners.get(id(tensor))
        if owner is not None and getattr(owner, "weight", None) is not tensor:
            owner = None
        state = _quant_state(name, tensor, owner)
        if state is not None:
            held = dict(state.as_dict())
            found.update({f"{name}.quant_state.{key}": v for key, v in held.items() if isinstance(v, Tensor)})
            said = sorted(f"{key} {v!r}\n" for key, v in held.items() if not isinstance(v, Tensor))
            notes.append(f"{name}.quant_state {hashlib.sha256(''.join(said).encode()).hexdigest()}\n")
        if tensor.dtype in _PACKED and not is_traceable_wrapper_subclass(tensor):
            # bitsandbytes' layers of 8 bits move the scales there at their first forward
            moved = {"SCB": getattr(getattr(owner, "state", None), "SCB", None)}
            for key, value in {**moved, **{k: v for k, v in vars(tensor).items() if v is not None}}.items():
                if isinstance(value, Tensor) and value.data_ptr() != tensor.data_ptr():
                    found[f"{name}.{key}"] = value
    return found, notes


def _quant_state(name: str, tensor: Tensor, owner: nn.Module | None) -> Any:
    """Of a parameter, or of its layer where it was lost on the way (sharding does that); None where there is none."""
    state = getattr(tensor, "quant_state", None)
    if state is None:
        state = getattr(owner, "quant_state", None)
        # others have a switch of that name
        return state if callable(getattr(state, "as_dict", None)) else None
    if not callable(getattr(state, "as_dict", None)):
        raise ValueError(
            f"parameter {name!r} has a quant_state of type {type(state).__name__} without as_dict(), so that its weights are not "
            "known; expected bitsandbytes 0.41 or later"
        )
    return state


def _check(name: str, tensor: Tensor) -> None:
    problem = None
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        problem = "is on the device meta and has no bits: load or make its weights first"
    elif tensor.layout != torch.strided:
        problem = f"is {tensor.layout}: convert it with to_dense()"
    elif tensor.is_quantized:
        problem = f"is {tensor.dtype}: keep its int_repr() and scales in buffers"
    if problem is not None:
        raise ValueError(f"parameter {name!r} {problem}; a digest is of bits in memory")


def _whole(name: str, tensor: Tensor) -> Tensor:
    return distributed.whole(name, tensor) if distributed.is_dtensor(tensor) else tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def tensor_hash(tensor: Tensor) -> str:
    hasher = hashlib.sha256()
    if is_traceable_wrapper_subclass(tensor):
        for line in _held(tensor):
            hasher.update(line.encode("utf-8"))
        return hasher.hexdigest()
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _PIECE):
        hasher.update(flat[start : start + _PIECE].cpu().numpy().data)
    return hasher.hexdigest()


def _held(tensor: Tensor) -> Iterator[str]:
    """What a tensor that wraps others is made of: its kind, its settings, then those others by name."""
    names, settings = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    # an address in a repr would be another one in every process
    yield f"{type(tensor).__name__} {re.sub(r' at 0x[0-9a-fA-F]+', '', repr(settings))}\n"
    for name in sorted(names):
        inner = getattr(tensor, name)
        _check(name, inner)
        yield f"{name} {_dtype(inner)} {'x'.join(map(str, inner.shape))} {tensor_hash(inner)}\n"
