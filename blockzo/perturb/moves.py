"""How the parameters of a block are moved: by numbers that the host knows, or by numbers in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blockzo import ops
from blockzo.contract import is_low_rank
from blockzo.noise import Noise
from blockzo.ops import scaled
from blockzo.ops.backends import choice
from blockzo.ops.copies import checked_rows
from blockzo.ops.linear import whole_linear
from blockzo.ops.low_rank import by_form
from blockzo.ops.packed import PackedStep, packed
from blockzo.ops.params import Target
from blockzo.ops.steps import Step, make_step

if TYPE_CHECKING:
    from blockzo.perturb.parameters import Parameter


@dataclass(frozen=True)
class Move:
    """In group g the parameters of a block are `w + scales[g] * z(noise, directions[g])`; one group is a plain forward."""

    noise: Noise
    directions: tuple[int, ...]
    scales: tuple[float, ...]
    moved: str = "auto"
    """Of linear layers, as of `ops.perturbed_linear`."""

    @property
    def groups(self) -> int:
        return len(self.directions)

    @cached_property
    def step(self) -> Step:
        """Of all groups, for tensors of full rank."""
        return make_step(self.noise, self.directions, self.scales)

    def low_rank(self, parameter: Parameter) -> bool:
        """Whether it has products of its own: with scales it has none."""
        return (
            self.noise.rank is not None
            and parameter.scales is None
            and is_low_rank(parameter.tensor.shape, self.noise.rank)
        )

    def _step(self, parameter: Parameter, *groups: int) -> Step:
        directions, scales = zip(*((self.directions[g], self.scales[g]) for g in groups), strict=True)
        return make_step(self.noise, directions, scales).of_shape(parameter.tensor.shape)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, parameter: Parameter, start: int) -> Tensor:
        """`ops.perturbed_linear` for all groups."""
        if weight is parameter.tensor and self.noise.rank is None and parameter.scales is None:
            return whole_linear(x, weight, bias, parameter.stream, self.step, self.moved)
        if parameter.scales is not None:
            step = self._step(parameter, *range(self.groups))
            return scaled.scaled_linear(x, weight, bias, parameter.scales, start, step, parameter.stream, self.moved)
        where = self.noise, parameter.stream, self.directions, self.scales, start, parameter.tensor.shape
        return ops.perturbed_linear(x, weight, bias, *where, self.moved)

    def copy(self, out: Tensor, source: Tensor, parameter: Parameter, start: int, group: int) -> None:
        """`source`, which begins at index `start` of its parameter, as the group sees it, into `out`."""
        if parameter.scales is not None:
            scaled.scaled_copy(out, source, parameter.scales, start, self._step(parameter, group), parameter.stream)
            return
        where = parameter.stream, self.scales[group], self.directions[group], start, out, parameter.tensor.shape
        ops.perturbed_copy(source, self.noise, *where)

    def rows(self, table: Tensor, rows: Tensor, parameter: Parameter, group: int) -> Tensor:
        """`ops.perturbed_rows` for one group."""
        if parameter.scales is not None:
            step = self._step(parameter, group)
            return scaled.scaled_rows(table, rows, parameter.scales, step, parameter.stream)
        return ops.perturbed_rows(table, rows, self.noise, parameter.stream, self.scales[group], self.directions[group])

    def stack(self, pieces: Sequence[Tensor]) -> Tensor:
        """[groups, elements]: flat tensors one after the other, once a group."""
        flat = torch.cat(list(pieces))
        return flat.view(1, -1) if self.groups == 1 else flat.repeat(self.groups, 1)

    def perturb_(self, found: Sequence[Target], group: int) -> None:
        """Moves copies in place."""
        if self.scales[group] != 0.0:
            step = make_step(self.noise, [self.directions[group]], [self.scales[group]])
            for part, (own,) in by_form(found, [step]):
                choice.move(part, own, "perturb")

    def packed(self, device: torch.device) -> PackedStep:
        """The numbers in memory of the device."""
        return packed(make_step(self.noise, self.directions, self.scales), device)


class PackedMove:
    """A `Move` whose numbers lie in device memory; how many groups there are is all that the host knows.

    Args:
        scratch: keeps the copies of small parameters where they are from forward to forward, so that the kernels' tables of their
            addresses stay right in a captured graph; one for moves that run one after the other.
    """

    def __init__(
        self, step: PackedStep, scratch: dict[tuple[object, ...], Tensor] | None = None, moved: str = "auto"
    ) -> None:
        self.step, self.groups, self.scratch, self.moved = step, len(step.terms), scratch, moved
        self._each = [step.term(group) for group in range(self.groups)]

    def low_rank(self, parameter: Parameter) -> bool:
        return False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, parameter: Parameter, start: int) -> Tensor:
        flat = x.reshape(self.groups, -1, weight.shape[1])
        tables = self.step.line, self.step.terms, self.step.distribution
        out: Tensor = torch.ops.blockzo.perturbed_linear.packed(
            flat, weight, bias, start, parameter.stream, *tables, self.moved
        )
        return out.view(*x.shape[:-1], weight.shape[0])

    def copy(self, out: Tensor, source: Tensor, parameter: Parameter, start: int, group: int) -> None:
        step = self._each[group]
        tables = step.line, step.terms, step.distribution
        torch.ops.blockzo.perturbed_copy.packed(out, source, start, parameter.stream, *tables)

    def rows(self, table: Tensor, rows: Tensor, parameter: Parameter, group: int) -> Tensor:
        step, flat = self._each[group], checked_rows(table, rows)
        tables = step.line, step.terms, step.distribution
        out: Tensor = torch.ops.blockzo.perturbed_rows.packed(table, flat, parameter.stream, *tables)
        return out.view(*rows.shape, table.shape[1])

    def stack(self, pieces: Sequence[Tensor]) -> Tensor:
        count, like = sum(map(len, pieces)), pieces[0]
        key = self.groups, count, like.dtype, like.device
        held = None if self.scratch is None else self.scratch.get(key)
        if held is None:
            held = torch.empty(self.groups, count, dtype=like.dtype, device=like.device)
            if self.scratch is not None:
                self.scratch[key] = held
        torch.cat(list(pieces), out=held[0])
        held[1:].copy_(held[:1].expand_as(held[1:]))
        return held

    def perturb_(self, found: Sequence[Target], group: int) -> None:
        step, tensors = self._each[group], [target.tensor for target in found]
        tables = step.line, step.terms, step.distribution
        torch.ops.blockzo.move_.packed(tensors, [t.stream for t in found], "perturb", *tables, False)

    def packed(self, device: torch.device) -> PackedStep:
        return self.step


Moves = Move | PackedMove
