"""The moved values of parameters, for whoever meets a parameter or a view of one: by identity, by storage, group by group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from blockzo.perturb import batched
from blockzo.perturb.moves import Moves
from blockzo.perturb.parameters import Index, Parameter
from blockzo.perturb.small import SmallParameters


class MovedValues:
    """What the functions of a forward are handed in place of parameters; the mode (`mode.py`) decides when.

    Args:
        index, moves, groups, level, measure: as of `PerturbedForward`.
    """

    def __init__(
        self, index: Index | None, moves: Mapping[int, Moves] | None, groups: int, level: int | None, measure: bool
    ) -> None:
        super().__init__()
        self.index, self.moves = index or Index({}), moves or {}
        self.groups, self.level, self.measure = groups, level, measure
        self.footprint = self.entered = 0
        self.small = {block: SmallParameters(held, self.moves[block]) for block, held in self.index.small.items()}
        self.tables: dict[str, tuple[Tensor, Tensor, str]] = {}
        self.linear_moved = "auto"
        """What a compiled forward reads, see `perturbed`."""
        self._by_id, self._by_storage = self.index.by_id, self.index.by_storage
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def find(self, value: Any) -> tuple[Parameter, int] | None:
        """The moved parameter that a tensor is or looks into, and where in it the tensor begins."""
        parameter = self._by_id.get(id(value))
        if parameter is not None:
            return parameter, 0
        if not self._by_storage or not isinstance(value, Tensor):
            return None
        if batched.is_wrapped(value) or value.layout is not torch.strided or is_traceable_wrapper_subclass(value):
            return None  # what is made of others (a quantised weight) has no memory of its own
        storage = self._by_storage.get(value.untyped_storage().data_ptr())
        return None if storage is None else storage.find(value)

    def moved(self, value: Any) -> Any:
        """`value`, or what it is here where it is a moved parameter or a view of one."""
        found = self.find(value)
        if found is None:
            return value
        return self._of_all(self.copies(value, found))

    def _of_all(self, copies: Tensor) -> Tensor:
        return copies[0] if self.level is None else batched.lift(copies, self.level)

    def not_rounded(self, value: Any) -> bool:
        """Is it a matrix whose moved values products take as they are, though its dtype has 16 bits?"""
        if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype == torch.float32:
            return False
        found = self.find(value)
        return found is not None and self.moves[found[0].block].moved == "float32"

    def wide(self, value: Tensor) -> Tensor:
        """The moved values of such a one in float32."""
        found = self.find(value)
        assert found is not None
        return self._of_all(self.copies(value, found, torch.float32))

    def copies(self, view: Tensor, found: tuple[Parameter, int], dtype: torch.dtype | None = None) -> Tensor:
        """[groups, *shape of the view]: its moved values, rounded to its dtype; or in float32."""
        parameter, start = found
        block = parameter.block
        if parameter.small and dtype is None:
            whole = self.small[block].copies(parameter)
        else:
            whole = parameter.copies(self.moves[block], dtype)
        if self.measure and not parameter.small:
            self.footprint = max(self.footprint, 2 * nbytes_of(whole))
        if view is parameter.tensor:
            return whole
        dense = whole.view(self.groups, -1)
        strides = (dense.stride(0), *view.stride())
        return dense.as_strided((self.groups, *view.shape), strides, dense.storage_offset() + start)

    def lower(self, tensor: Tensor) -> tuple[Tensor, bool] | None:
        """A tensor without its groups, see `batched.lower`; None where a transform of the model's own is at work, and of a moved
        parameter, whose values the tensor does not hold.
        """
        if not batched.is_wrapped(tensor):
            return None if self._holds(tensor) else (tensor, False)
        if self.level is None:
            return None
        plain, grouped = batched.lower(tensor, self.level)
        return (plain, True) if grouped and not batched.is_wrapped(plain) else None

    def lower_all(self, tensor: Tensor) -> Tensor | None:
        """The same with the groups in dimension 0, shared or not; without that dimension where one runs alone."""
        if self.level is None:
            return None if batched.is_wrapped(tensor) or self._holds(tensor) else tensor
        found = self.lower(tensor)
        if found is None:
            return None
        plain, grouped = found
        return plain if grouped else plain.unsqueeze(0).expand(self.groups, *plain.shape)

    def _holds(self, tensor: Tensor) -> bool:
        return self.index.may_hold(tensor) and self.find(tensor) is not None

    def lift(self, tensor: Tensor) -> Tensor:
        """Undoes `lower_all`."""
        return tensor if self.level is None else batched.lift(tensor, self.level)

    def scratch(self, like: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        key = (like.device, dtype)
        held = self._scratch.get(key)
        if held is None or held.numel() < numel:
            held = torch.empty(numel, dtype=dtype, device=like.device)
            self._scratch[key] = held
        return held[:numel]


def nbytes_of(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(nbytes_of, value))
    if not isinstance(value, Tensor) or (type(value) is not Tensor and isinstance(value, nn.Parameter)):
        return 0
    return value.numel() * value.element_size()
