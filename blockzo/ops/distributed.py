"""DTensors and FSDP: which part of a parameter this rank holds, and what belongs to all ranks together.

torch.distributed.tensor is never imported here: a DTensor can only exist where somebody else has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.ops.shards import Place, place_of, row_major

# newest first, back to torch 2.4
_DTENSOR = ("torch.distributed.tensor", "torch.distributed._tensor")
_FSDP = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")


@dataclass(frozen=True)
class Spread:
    """Over which dimensions of its mesh the elements of a DTensor are split; none where each rank holds all of them."""

    mesh: Any
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """What this rank holds of a DTensor."""

    tensor: Tensor
    place: Place | None
    spread: Spread


def _found(modules: tuple[str, ...], name: str) -> Any:
    """A class of the first of these modules that is loaded and has it."""
    candidates = (getattr(sys.modules.get(module), name, None) for module in modules)
    return next((found for found in candidates if found is not None), None)


def is_dtensor(tensor: object) -> bool:
    if type(tensor) is Tensor or type(tensor) is nn.Parameter:
        return False
    kind = _found(_DTENSOR, "DTensor")
    return kind is not None and isinstance(tensor, kind)


def local_tensor(tensor: Any) -> Tensor:
    with torch.no_grad():
        local: Tensor = tensor.to_local()
    return local


def part_of(name: str, tensor: Any) -> Part:
    """The part of a DTensor on this rank; empty where the rank is outside the mesh.

    Raises:
        ValueError: a placement other than Shard and Replicate, or a local tensor of another size than Shard makes it.
    """
    replicated, sharded = (_found(_DTENSOR, name) for name in ("Replicate", "Shard"))
    shape, mesh = tuple(tensor.shape), tensor.device_mesh
    sizes, offsets, dims = list(shape), [0] * len(shape), []
    coordinate = mesh.get_coordinate()
    for number, placement in enumerate(tensor.placements):
        # exactly these: torch derives other placements from them
        if type(placement) is replicated:
            continue
        if type(placement) is not sharded:
            raise ValueError(
                f"parameter {name!r} is a DTensor with placements {tensor.placements}; expected Shard and Replicate alone: "
                "redistribute it (Partial: to Replicate()), or pass the local tensor as a blockzo.Shard with its place in the "
                "whole"
            )
        dims.append(number)
        if coordinate is not None:
            d = placement.dim % len(shape)
            # as torch.chunk cuts: the last pieces may be short or empty
            piece = -(-sizes[d] // mesh.size(number))
            begin = min(sizes[d], piece * coordinate[number])
            offsets[d] += begin
            sizes[d] = min(sizes[d], begin + piece) - begin
    local = local_tensor(tensor)
    spread = Spread(mesh, tuple(dims))
    if coordinate is None:
        return Part(local, None, spread)
    if type(local) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"parameter {name!r} is a DTensor of a {type(local).__name__}; expected plain torch.Tensors on each rank"
        )
    empty = 0 in sizes
    if tuple(local.shape) != tuple(sizes) and not (empty and not local.numel()):
        raise ValueError(
            f"parameter {name!r} of shape {shape} is a DTensor with placements {tensor.placements}; its local tensor has shape "
            f"{tuple(local.shape)}, expected {tuple(sizes)} on this rank: pass the local tensor as a blockzo.Shard with its "
            "place in the whole"
        )
    strides = row_major(shape)
    start = sum(o * s for o, s in zip(offsets, strides, strict=True))
    return Part(local, None if empty else place_of(sizes, start, strides, shape), spread)


def whole(name: str, tensor: Any) -> Tensor:
    """All of a DTensor, gathered: every rank of its mesh must call this at the same point."""
    part_of(name, tensor)
    with torch.no_grad():
        full: Tensor = tensor.full_tensor()
    return full


def reshard(model: nn.Module) -> None:
    """FSDP2 may leave gathered copies in place of the parameters after a forward: what is written to them would be lost.

    Raises:
        ValueError: the model is wrapped in FullyShardedDataParallel (FSDP1), whose parameters have no place in a tensor.
    """
    kind, former = (_found(_FSDP, name) for name in ("FSDPModule", "FullyShardedDataParallel"))
    kind = kind or _found(_FSDP, "FSDP")
    if kind is None and former is None:
        return
    for module in model.modules():
        if former is not None and isinstance(module, former):
            raise ValueError(
                "the model is wrapped in FullyShardedDataParallel (FSDP1), which flattens its parameters; expected a plain "
                "module or torch's fully_shard (FSDP2): use fully_shard(model)"
            )
        if kind is not None and isinstance(module, kind):
            module.reshard()


def keep_sharded(model: nn.Module) -> None:
    """Has every module of FSDP2 drop its gathered copies after its forward, the root's too.

    A forward that is left at the end of a block never ends for FSDP, and `reshard` does nothing inside of one for a module that
    keeps its copies.

    Raises:
        ValueError: this torch cannot be told so.
    """
    kind = _found(_FSDP, "FSDPModule") or _found(_FSDP, "FSDP")
    for module in model.modules() if kind is not None else ():
        if isinstance(module, kind):
            change = getattr(module, "set_reshard_after_forward", None)
            if change is None:
                raise ValueError(
                    f"torch {torch.__version__} has no FSDPModule.set_reshard_after_forward, without which gathered copies may "
                    "lack a move; expected a newer torch"
                )
            change(True, recurse=False)


def sum_over_ranks(sums: Mapping[Spread | None, list[float]], count: int) -> list[float]:
    """Adds float64 partial sums: those of None are this process's alone, all others of every rank that holds a piece.

    Ranks are added in order, so that all get the same bits.
    """
    totals = [0.0] * count
    for spread, part in sums.items():
        value = torch.tensor(part, dtype=torch.float64)
        for dim in spread.dims if spread is not None else ():
            value = _sum_over(spread, dim, value)
        totals = [a + b for a, b in zip(totals, value.tolist(), strict=True)]
    return totals


def _sum_over(spread: Any, dim: int, value: Tensor) -> Tensor:
    import torch.distributed as dist

    if spread.mesh.get_coordinate() is None:
        raise ValueError(
            "this rank is outside the mesh of a DTensor; expected project to be called on the mesh's ranks"
        )
    group = spread.mesh.get_group(dim)
    sent = value.to(spread.mesh.device_type)
    held = [torch.empty_like(sent) for _ in range(spread.mesh.size(dim))]
    dist.all_gather(held, sent, group=group)
    total = torch.zeros_like(value)
    for one in held:
        total = total + one.cpu()
    return total
