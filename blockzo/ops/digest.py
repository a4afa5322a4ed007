"""A digest of weights: equal digests mean equal names, dtypes, shapes and bits."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from blockzo.ops import distributed
from blockzo.ops.params import Params, named_tensors

PREFIX = "bz1-"
_PIECE = 1 << 24


def digest(params: Params) -> str:
    """Order-independent SHA-256 over names, dtypes, shapes and bits (row-major, little-endian) of all parameters.

    For a module, frozen parameters are included. The result begins with `bz1-`, the version of this definition: SHA-256 of the
    lines `name dtype shape sha256-of-bytes`, sorted by name.

    DTensors have the digest of the whole tensors, which are gathered one at a time: all ranks must call this.

    Raises:
        ValueError: a `Shard`, or a DTensor whose placement is not Shard or Replicate.
    """
    tensors = named_tensors(params, trainable_only=False)
    if any(map(distributed.is_dtensor, tensors.values())):
        hashes = [tensor_hash(_whole(name, tensor)) for name, tensor in tensors.items()]
    else:
        with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
            hashes = list(pool.map(tensor_hash, tensors.values()))
    lines = sorted(
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))} {value}\n"
        for (name, tensor), value in zip(tensors.items(), hashes, strict=True)
    )
    return PREFIX + hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def _whole(name: str, tensor: Tensor) -> Tensor:
    return distributed.whole(name, tensor) if distributed.is_dtensor(tensor) else tensor


def tensor_hash(tensor: Tensor) -> str:
    hasher = hashlib.sha256()
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _PIECE):
        hasher.update(flat[start : start + _PIECE].cpu().numpy().data)
    return hasher.hexdigest()
