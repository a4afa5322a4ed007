"""Norm weights, biases and other small parameters: many, and each costs more to ask for than to make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockzo.ops.params import Target
from blockzo.perturb.moves import Moves
from blockzo.perturb.parameters import Parameter, shaped_scales


class SmallParameters:
    """The moved values of the small parameters of one block: one pass over one buffer, at first need."""

    def __init__(self, parameters: Sequence[Parameter], move: Moves) -> None:
        self.parameters, self.move = parameters, move
        self._made: dict[int, Tensor] | None = None

    def copies(self, parameter: Parameter) -> Tensor:
        """[groups, *shape] of one of the parameters."""
        if self._made is None:
            self._made = self._make()
        return self._made[id(parameter.tensor)]

    @property
    def nbytes(self) -> int:
        return self.move.groups * sum(p.tensor.numel() * p.tensor.element_size() for p in self.parameters)

    def _make(self) -> dict[int, Tensor]:
        alike: dict[tuple[torch.dtype, torch.device], list[Parameter]] = {}
        for parameter in self.parameters:
            alike.setdefault((parameter.tensor.dtype, parameter.tensor.device), []).append(parameter)
        groups, result = self.move.groups, {}
        for members in alike.values():
            buffer = self.move.stack([p.tensor.detach().reshape(-1) for p in members])
            sizes = [p.tensor.numel() for p in members]
            for group, row in enumerate(buffer):
                pieces = row.split(sizes)
                found = [
                    Target(p.name, p.stream, piece.view(p.tensor.shape), per_weight=shaped_scales(p))
                    for p, piece in zip(members, pieces, strict=True)
                ]
                self.move.perturb_(found, group)
            for parameter, part in zip(members, buffer.split(sizes, dim=1), strict=True):
                result[id(parameter.tensor)] = part.view(groups, *parameter.tensor.shape)
        return result
