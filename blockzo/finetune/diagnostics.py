"""Do eps and the learning rate rise above rounding? Figures of every step, and advice where they do not.

Definitions (also in docs/finetune.md), for one step with losses l_1 .. l_n:

    difference   sqrt(2) times the standard deviation of the losses: the typical difference of two of them (|l+ - l-| for a pair)
    snr          difference / (epsilon(dtype) * |mean loss|): in units of the last place of a loss in the weights' dtype
    spread       per block, standard deviation over root mean square of its scalars (two directions or more): near 1 where they
                 are as often positive as negative, near 0 where they share an offset that is not the gradient's
    unmoved      share of a fixed sample of weights that the update left with the same bits
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blockzo.journal.record import Record
from blockzo.noise import philox, stream_id

SAMPLE = 1 << 15
LOW_SNR = 8.0
MOST = 0.5


def difference(losses: Sequence[float]) -> float:
    mean = math.fsum(losses) / len(losses)
    return math.sqrt(2.0 * math.fsum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1))


def figures(record: Record, dtype: torch.dtype) -> dict[str, Any]:
    """Loss, learning rates and signal figures of a step, from its record alone."""
    losses = record.losses
    mean = math.fsum(losses) / len(losses)
    resolution = torch.finfo(dtype).eps * abs(mean)
    typical = difference(losses)
    return {
        "loss": mean,
        "lr": list(record.lr),
        "difference": typical,
        "snr": typical / resolution if resolution else None,
        "spread": [_spread(block) for block in record.scalars],
    }


def _spread(coefficients: Sequence[float]) -> float | None:
    # a block's coefficients are its scalars times one learning rate, which the ratio does not see
    square = math.fsum(c * c for c in coefficients)
    if len(coefficients) < 2 or square == 0.0:
        return None
    mean = math.fsum(coefficients) / len(coefficients)
    deviation = math.fsum((c - mean) ** 2 for c in coefficients) / (len(coefficients) - 1)
    return math.sqrt(deviation / (square / len(coefficients)))


class WeightSample:
    """A fixed random sample of a model's weights, every tensor in proportion to its size.

    Args:
        parameters: name -> tensor; read when `take` is called.
    """

    def __init__(self, parameters: Mapping[str, Tensor], seed: int, size: int = SAMPLE) -> None:
        total = max(1, sum(t.numel() for t in parameters.values()))
        self._places: list[tuple[Tensor, Tensor]] = []
        for name, tensor in parameters.items():
            count = min(tensor.numel(), math.ceil(size * tensor.numel() / total))
            words = philox(torch.arange(count, dtype=torch.int64), seed, stream_id(name), 0)[0]
            index = words % tensor.numel() if count else words
            self._places.append((tensor, index.to(tensor.device)))

    def take(self) -> Tensor:
        """The sampled weights, [N], as they are now, in float32."""
        with torch.no_grad():
            return torch.cat([torch.take(tensor.detach(), index).float() for tensor, index in self._places])


def unmoved(before: Tensor, after: Tensor) -> float:
    return float((before == after).double().mean())


def eps_advice(weights: Tensor, eps: Sequence[float], dtype: torch.dtype) -> str | None:
    """A warning where half of the weights or more cannot be moved by eps, since it is under half their spacing in `dtype`."""
    magnitude = weights.abs().double()
    exponent = torch.floor(torch.log2(magnitude.clamp_min(torch.finfo(dtype).tiny)))
    spacing = torch.finfo(dtype).eps * torch.exp2(exponent)
    typical = float(spacing.median())
    for value in sorted(set(eps)):
        lost = float((value < spacing / 2).double().mean())
        if lost >= MOST:
            return (
                f"eps {value:g} is lost in rounding for {lost:.0%} of the {_name(dtype)} weights (their spacing is typically "
                f"{typical:.1g}): the losses then say little about the direction. Raise --eps to {2 * typical:.1g} or more, or "
                "use --dtype float32"
            )
    return None


def update_advice(share: float, dtype: torch.dtype, stochastic: bool) -> str | None:
    """A warning where an update left most weights as they were."""
    if share < MOST:
        return None
    remedy = (
        "raise --lr"
        if dtype == torch.float32 or stochastic
        else "add --stochastic-rounding, raise --lr, or use --dtype float32"
    )
    return (
        f"an update left {share:.0%} of the {_name(dtype)} weights unmoved (it is under half their spacing): {remedy}"
    )


def snr_advice(snr: float | None, dtype: torch.dtype) -> str | None:
    """A warning where the loss differences are a few roundings of a loss."""
    if snr is None or snr >= LOW_SNR:
        return None
    return (
        f"the losses of a step differ by {snr:.1f} roundings of a {_name(dtype)} loss only: their differences are mostly noise. "
        "Raise --eps" + ("" if dtype == torch.float32 else ", or use --dtype float32")
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
