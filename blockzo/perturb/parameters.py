"""Which tensors are moved, and how they are recognised."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blockzo.ops.params import Target
from blockzo.ops.scaled import flat_scales
from blockzo.perturb.moves import Moves
from blockzo.perturb.views import remember

SMALL = 1 << 14
"""Parameters of at most so many elements (norm weights, biases, LoRA matrices) are moved together, in one call a block."""


@dataclass(eq=False, slots=True)
class Parameter:
    """A tensor that is moved, with the block whose `Move` is its own."""

    name: str
    stream: int
    tensor: Tensor
    block: int
    small: bool
    contiguous: bool
    table: str
    """Where a compiled forward finds the numbers of its move."""
    scales: Tensor | None = None
    """What its noise is multiplied by, of all elements in row-major order."""

    def copies(self, move: Moves, dtype: torch.dtype | None = None) -> Tensor:
        """[groups, *shape]: its moved values, rounded to its dtype; or in float32."""
        source = self.tensor.detach().contiguous()
        out = torch.empty(move.groups, *source.shape, dtype=dtype or source.dtype, device=source.device)
        for group in range(move.groups):
            move.copy(out[group], source, self, 0, group)
        return out


def shaped_scales(parameter: Parameter) -> Tensor | None:
    return None if parameter.scales is None else parameter.scales.view(parameter.tensor.shape)


class Index:
    """The parameters that are moved: recognised by identity, their views by storage.

    Args:
        blocks: number of a block -> its parameters.
        model: whose parameters they are; None: no forward of it can be compiled.
    """

    def __init__(self, blocks: Mapping[int, Iterable[Target]], model: nn.Module | None = None) -> None:
        self.model = None if model is None else remember(model)
        self.tables: dict[str, tuple[int, torch.device]] = {}
        self.by_id: dict[int, Parameter] = {}
        self.small: dict[int, list[Parameter]] = {}
        held: dict[int, list[tuple[int, int, Parameter]]] = {}
        ranges: set[tuple[int, int]] = set()
        for block, targets in blocks.items():
            names: dict[torch.device, str] = {}
            for target in targets:
                tensor, storage = target.tensor, target.tensor.untyped_storage()
                device, count, begin = tensor.device, tensor.numel(), storage.data_ptr()
                if device not in names:
                    names[device] = table = f"{block} {device}"
                    self.tables[table] = block, device
                scales = None if target.per_weight is None else flat_scales(target.per_weight)
                small, dense, table = count <= SMALL, tensor.is_contiguous(), names[device]
                parameter = Parameter(target.name, target.stream, tensor, block, small, dense, table, scales)
                self.by_id[id(tensor)] = parameter
                if small:
                    self.small.setdefault(block, []).append(parameter)
                if count:
                    place = int(tensor.storage_offset()), len(self.by_id), parameter
                    held.setdefault(begin, []).append(place)
                ranges.add((begin, begin + storage.nbytes()))
        self.by_storage = {begin: _Storage(sorted(parameters)) for begin, parameters in held.items()}
        self.begins, self.ends = [begin for begin, _ in sorted(ranges)], [end for _, end in sorted(ranges)]

    def may_hold(self, tensor: Tensor) -> bool:
        """False: a plain tensor, wrapped by no transform, that is no moved parameter and no view of one. Nearly all that a
        forward handles are such, and asking for a storage costs four times this.
        """
        if id(tensor) in self.by_id:
            return True
        try:
            address = tensor.data_ptr()
            place = bisect_right(self.begins, address)
            return place > 0 and address < self.ends[place - 1]
        except (RuntimeError, NotImplementedError):
            # no address: sparse, fake
            return True


class _Storage:
    """The moved parameters of one storage."""

    def __init__(self, held: Sequence[tuple[int, int, Parameter]]) -> None:
        self.begins = [begin for begin, _, _ in held]
        self.parameters = [parameter for _, _, parameter in held]

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
