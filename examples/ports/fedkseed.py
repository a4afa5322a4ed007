"""FedKSeed (Qin et al., arXiv 2312.06353): K seeds for the whole training, so its result is K numbers.

A client draws a seed at every local step and adds the slope along it to that seed's sum. The model is the base moved along all K
seeds at once: one pass over the weights, however many steps were taken and by whomever.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import blockzo as bz


@torch.no_grad()
def local_sums(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    seeds: Sequence[int],
    steps: int,
    lr: float,
    eps: float,
    chance: random.Random,
) -> list[float]:
    """What a client sends after so many local steps: a sum of slopes for each seed.

    Args:
        loss: evaluates the model on the batch of a local step.
    """
    sums = [0.0] * len(seeds)
    for step in range(steps):
        j = chance.randrange(len(seeds))
        z, losses = bz.Noise(seeds[j], "gaussian"), []
        for sign in (1, -1):
            with bz.perturbed(model, z, [0], [sign * eps]):
                losses.append(float(loss(step)))
        slope = (losses[0] - losses[1]) / (2 * eps)
        sums[j] += slope
        bz.update_(model, z, [lr * slope])
    return sums


def build(model: nn.Module, seeds: Sequence[int], sums: Sequence[float], lr: float) -> None:
    """The base becomes the model of these sums, summed over clients and rounds."""
    bz.update_(model, [bz.Noise(seed, "gaussian") for seed in seeds], [lr * s for s in sums])
