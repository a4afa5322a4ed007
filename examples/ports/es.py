"""Evolution strategies at scale (Qiu et al., arXiv 2509.24372): members with a seed each, rewards made z-scores, one update.

For workers of vLLM the same two calls are `zo_perturb` and `zo_update` of `blockzo.integrations.vllm.WorkerExtension`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

import torch
from torch import nn

import blockzo as bz


@torch.no_grad()
def es_step(
    model: nn.Module, reward: Callable[[], float], seeds: Sequence[int], rate: float, sigma: float
) -> list[float]:
    """w <- w + rate / members * sum of (reward - mean) / deviation * z, with weights written once.

    Args:
        reward: of the model as it is when called: an accuracy, a judge's mark, any number.

    Returns:
        The rewards of the members.
    """
    members = [bz.Noise(seed, "gaussian") for seed in seeds]
    rewards = []
    for member in members:
        with bz.perturbed(model, member, [0], [sigma]):
            rewards.append(reward())
    mean, deviation = fmean(rewards), pstdev(rewards)
    scores = [(r - mean) / (deviation + 1e-8) for r in rewards]
    bz.update_(model, members, [-rate * score / len(members) for score in scores])
    return rewards
