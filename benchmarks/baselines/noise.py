"""Noise as plain torch makes it: from a seed, one parameter after the other, again at every use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.optim.step import step_seed

Use = Callable[[Tensor, Tensor], object]
Draw = Callable[[int, list[Tensor], Use], None]
"""(seed, parameters, use): calls use(parameter, z) for every parameter with the direction that the seed stands for."""
Loss = Callable[[nn.Module, Any], Tensor]


def normal_noise(seed: int, parameters: list[Tensor], use: Use) -> None:
    """Standard normal noise from torch's global generator, one parameter after the other."""
    torch.manual_seed(seed)
    for parameter in parameters:
        use(parameter, torch.normal(0.0, 1.0, parameter.shape, device=parameter.device, dtype=parameter.dtype))


def sign_noise(seed: int, parameters: list[Tensor], use: Use) -> None:
    """Signs, likewise."""
    torch.manual_seed(seed)
    for parameter in parameters:
        signs = torch.randint(0, 2, parameter.shape, device=parameter.device, dtype=torch.int8)
        use(parameter, signs.to(parameter.dtype).mul_(2).sub_(1))


class InPlace:
    """A model whose weights are moved where they lie, and the losses it has there.

    `draw` is where directions come from.

    Raises:
        ValueError (from `loss`): it is not finite; the weights stay as they were moved, as in an eager implementation.
    """

    draw: Draw = staticmethod(normal_noise)

    def __init__(self, model: nn.Module, loss_fn: Loss) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def add(self, seed: int, scale: float) -> None:
        """w <- w + scale z."""
        self.draw(seed, self.parameters, lambda parameter, z: parameter.data.add_(z, alpha=scale))

    def loss(self, batch: Any) -> float:
        with torch.no_grad():
            found = float(self.loss_fn(self.model, batch))
        if not math.isfinite(found):
            raise ValueError(f"the loss is {found}; expected a finite number: lower lr or eps")
        return found

    def slope(self, batch: Any, seed: int, eps: float) -> tuple[float, float]:
        """Mean of the losses at w + eps z and w - eps z, and their difference over 2 eps; the weights are put back."""
        self.add(seed, eps)
        plus = self.loss(batch)
        self.add(seed, -2 * eps)
        minus = self.loss(batch)
        self.add(seed, eps)
        return (plus + minus) / 2, (plus - minus) / (2 * eps)


class Directions(InPlace):
    """One that takes steps by itself: its settings, and the seeds that follow from the run's.

    Args:
        lr: learning rate of a step along the mean over its directions; FZOO divides it by a deviation.
        eps: how far weights are moved for a loss.
        seed: of the run.
        directions: a step.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss, lr: float, eps: float, seed: int, directions: int = 1) -> None:
        super().__init__(model, loss_fn)
        self.lr, self.eps, self.seed, self.directions = lr, eps, seed, directions
        self.step_number = 0

    def next_seed(self) -> int:
        """The next step's."""
        found = step_seed(self.seed, self.step_number)
        self.step_number += 1
        return found

    def next_seeds(self) -> list[int]:
        """Those of the next step's directions."""
        own = self.next_seed()
        return [step_seed(own, i) for i in range(self.directions)]
