"""Which tensors are moved, how they are recognised, and along which noise."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockzo import ops
from blockzo.noise import Noise
from blockzo.ops.params import Target

SMALL = 1 << 14
"""Parameters of at most so many elements (norm weights, biases, LoRA matrices) are moved together, in one call a block."""


@dataclass(frozen=True)
class Move:
    """In group g the parameters of a block are `w + scales[g] * z(noise, directions[g])`; one group is a plain forward."""

    noise: Noise
    directions: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def groups(self) -> int:
        return len(self.directions)


@dataclass(frozen=True, eq=False)
class Parameter:
    """A tensor that is moved, with the block whose `Move` is its own."""

    name: str
    stream: int
    tensor: Tensor
    block: int
    small: bool
    contiguous: bool

    def copies(self, move: Move) -> Tensor:
        """[groups, *shape]: its moved values."""
        source = self.tensor.detach().contiguous()
        out = torch.empty(move.groups, *source.shape, dtype=source.dtype, device=source.device)
        for copy, direction, scale in zip(out, move.directions, move.scales, strict=True):
            ops.perturbed_copy(source, move.noise, self.stream, scale, direction, 0, copy)
        return out


class Index:
    """The parameters that are moved: recognised by identity, their views by storage.

    Args:
        blocks: number of a block -> its parameters.
    """

    def __init__(self, blocks: Mapping[int, Iterable[Target]]) -> None:
        self.by_id: dict[int, Parameter] = {}
        self.small: dict[int, list[Parameter]] = {}
        storages: dict[int, list[tuple[int, int, Parameter]]] = {}
        for block, targets in blocks.items():
            for target in targets:
                tensor = target.tensor
                small = tensor.numel() <= SMALL
                parameter = Parameter(target.name, target.stream, tensor, block, small, tensor.is_contiguous())
                self.by_id[id(tensor)] = parameter
                if small:
                    self.small.setdefault(block, []).append(parameter)
                if tensor.numel():
                    place = int(tensor.storage_offset()), len(self.by_id), parameter
                    storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(place)
        self.by_storage = {storage: _Storage(held) for storage, held in storages.items()}


class _Storage:
    """The moved parameters of one storage."""

    def __init__(self, held: Sequence[tuple[int, int, Parameter]]) -> None:
        self.begins = [begin for begin, _, _ in sorted(held)]
        self.parameters = [parameter for _, _, parameter in sorted(held)]

    def find(self, tensor: Tensor) -> tuple[Parameter, int] | None:
        """The parameter that a tensor lies in, and where in it the tensor begins.

        Raises:
            ValueError: it lies across the border of one.
        """
        if not tensor.numel():
            return None
        first = int(tensor.storage_offset())
        last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        place = bisect_right(self.begins, first) - 1
        if place >= 0:
            found, begin = self.parameters[place], self.begins[place]
            if found.contiguous and last < begin + found.tensor.numel() and found.tensor.dtype == tensor.dtype:
                return found, first - begin
        for begin, parameter in zip(self.begins, self.parameters, strict=True):
            if (first < begin + parameter.tensor.numel() and begin <= last) or not parameter.contiguous:
                raise ValueError(
                    f"a view of shape {tuple(tensor.shape)} shares memory with parameter {parameter.name!r} but is not "
                    'inside it; its moved value is not defined: use evaluate="in_place" for this model'
                )
        return None
