"""DeComFL (Li et al., arXiv 2405.15861): federated rounds in which scalars alone travel, in both directions.

In a round every client walks K local steps; step k asks P shared directions by forward differences. The server averages the
scalars, and whoever lacks rounds applies them: direction p of step k is direction p of the noise with the step's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import blockzo as bz

Scalars = list[list[float]]
"""[K steps][P directions]."""
Loss = Callable[[nn.Module, int], Tensor]
"""Of the model on the batch of local step k."""


@torch.no_grad()
def local_scalars(model: nn.Module, loss: Loss, seeds: Sequence[int], directions: int, lr: float, mu: float) -> Scalars:
    """What a client sends. Its weights are afterwards as before the round, to the bit."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    sent = []
    for k, seed in enumerate(seeds):
        z, here = bz.Noise(seed, "gaussian"), float(loss(model, k))
        losses = []
        for p in range(directions):
            with bz.perturbed(model, z, [p], [mu]):
                losses.append(float(loss(model, k)))
        sent.append([(ahead - here) / mu for ahead in losses])
        catch_up(model, [seed], sent[-1:], lr)
    for name, p in model.named_parameters():
        p.copy_(before[name])
    return sent


def averaged(clients: Sequence[Scalars]) -> Scalars:
    """What the server sends back."""
    return [[sum(column) / len(clients) for column in zip(*step, strict=True)] for step in zip(*clients, strict=True)]


def catch_up(model: nn.Module, seeds: Sequence[int], scalars: Scalars, lr: float) -> None:
    """Any number of steps in one pass, the bits of one after the other."""
    records = []
    for k, (seed, step) in enumerate(zip(seeds, scalars, strict=True)):
        update = bz.BlockUpdate(tuple(range(len(step))), tuple(lr * s / len(step) for s in step))
        records.append(bz.Record(k, seed, "gaussian", (update,)))
    bz.replay_(model, records)
