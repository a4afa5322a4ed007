"""EGGROLL (arXiv 2511.16652): an evolution strategy whose members perturb matrices by noise of a low rank.

    python examples/ports/eggroll.py

Every generation evaluates a population around the weights, each member by a plain forward and a correction of rank r, and moves
the weights by sum_i f_i z_i, f_i being the fitness less its mean over its deviation. No member's weights exist: workers that know
the seed and the fitnesses arrive at the same bits. Written from the paper; members come in pairs of opposite signs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import blockzo as bz


def generation(
    model: nn.Module,
    loss: Callable[[], Tensor],
    seed: int,
    pairs: int = 16,
    sigma: float = 0.02,
    lr: float = 0.02,
    rank: int = 1,
) -> float:
    """One generation; returns the mean loss of its members."""
    noise, members = bz.Noise(seed, "gaussian", rank), [k for k in range(pairs) for _ in "+-"]
    losses = bz.perturbed_losses(model, noise, members, [sigma, -sigma] * pairs, loss).double()
    fitness = ((losses - losses.mean()) / (losses.std() + 1e-12)).view(pairs, 2)
    # the sign of a pair's second member is that of its perturbation
    steps = lr * (fitness[:, 0] - fitness[:, 1]) / (2 * pairs)
    bz.update_(model, noise, steps.tolist())
    return float(losses.mean())


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3))
    x = torch.randn(128, 16, generator=draw)
    labels = (x @ torch.randn(16, 3, generator=draw)).argmax(1)
    for number in range(100):
        mean = generation(model, lambda: nn.functional.cross_entropy(model(x), labels), seed=number)
        if number % 20 == 0 or number == 99:
            right = float((model(x).argmax(1) == labels).double().mean())
            print(f"generation {number:3d}  loss {mean:.4f}  right {right:.2f}")
    print(bz.digest(model))


if __name__ == "__main__":
    main()
