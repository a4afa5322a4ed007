"""A closure's losses at moved weights, for an optimiser that knows parameters and no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blockzo import ops
from blockzo.methods.tree import BlockMove
from blockzo.noise import Noise
from blockzo.ops.params import Target
from blockzo.perturb import Index, PerturbedForward, make_move

Closure = Callable[[], Any]
Terms = list[tuple[Noise, int, float]]
"""Noise, direction and coefficient of what an update subtracts."""


class Seen:
    """Losses at weights that a torch function mode hands out moved: nothing is written."""

    def __init__(
        self, groups: Sequence[Sequence[Target]], noise: Noise, eps: Sequence[float], moved: str = "auto"
    ) -> None:
        self.groups, self.noise, self.eps, self.moved = groups, noise, eps, moved

    def loss(self, leaf: Sequence[BlockMove], closure: Closure) -> Any:
        moves = {m.block: make_move(self.noise, [m.direction], [m.sign * self.eps[m.block]], self.moved) for m in leaf}
        with PerturbedForward(Index({block: self.groups[block] for block in moves}), moves):
            return closure()

    def restore(self) -> None:
        """There is nothing to restore."""

    def left(self) -> list[Terms]:
        return [[] for _ in self.groups]


class Moved:
    """Losses at weights that are moved in place, one pass from each state to the next."""

    def __init__(self, groups: Sequence[Sequence[Target]], noise: Noise, eps: Sequence[float]) -> None:
        self.params = [params_of(group) for group in groups]
        self.noise, self.eps = noise, eps
        self.now: list[dict[int, float]] = [{} for _ in groups]

    def loss(self, leaf: Sequence[BlockMove], closure: Closure) -> Any:
        self._go({m.block: {m.direction: m.sign * self.eps[m.block]} for m in leaf})
        return closure()

    def _go(self, wanted: dict[int, dict[int, float]]) -> None:
        for block, params in enumerate(self.params):
            now, then = self.now[block], wanted.get(block, {})
            if now != then:
                terms = {d: then.get(d, 0.0) - now.get(d, 0.0) for d in {**now, **then}}
                ops.shift_(params, self.noise, list(terms.items()))
                self.now[block] = then

    def restore(self) -> None:
        self._go({})

    def left(self) -> list[Terms]:
        return [[(self.noise, d, scale) for d, scale in now.items()] for now in self.now]


def params_of(group: Sequence[Target]) -> dict[str, Tensor]:
    return {t.name: t.tensor if t.owner is None else t.owner for t in group}


def numbers(losses: Sequence[Any]) -> list[float]:
    """All read in one copy, so that the device is waited for once."""
    if all(isinstance(loss, Tensor) and loss.numel() == 1 for loss in losses):
        return [float(x) for x in torch.stack([loss.detach().reshape(()).double() for loss in losses]).tolist()]
    return [float(loss) for loss in losses]
