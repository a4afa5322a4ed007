"""What the planner has to guess, by backpropagation: energy, confirmed share and curvatures of each block's gradient.

    python benchmarks/block_gradients.py --model minilm-l6 --task sst2     (a minute or two; smollm2-135m: half an hour)
    python benchmarks/block_gradients.py --vectors     biases and norms apart from the matrices of their block

E and rho are means over batches of 16 rows of the tuning problem of the comparison, T and S by moves on 96 rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.comparison.problems import TUNING_SEED, Problem, make
from blockzo.optim.cutting import fine_blocks

CURVED_ROWS = 96


@dataclass
class Gradient:
    """Of one block: its parameters, the sum of its gradients, and the sum of their squared norms."""

    weights: list[nn.Parameter]
    total: list[Tensor]
    squares: float = 0.0

    def add(self) -> None:
        for weight, total in zip(self.weights, self.total, strict=True):
            if weight.grad is not None:
                total += weight.grad
                self.squares += float(weight.grad.double().square().sum())

    @property
    def norm(self) -> float:
        return math.sqrt(sum(float(t.double().square().sum()) for t in self.total))


def by_block(problem: Problem, batches: int, vectors: bool) -> dict[str, Gradient]:
    """Gradients of batches that training would come to much later."""
    layout = fine_blocks(problem.model).layout
    named = {name: p for name, p in problem.model.named_parameters() if name in layout}
    parts: dict[str, list[nn.Parameter]] = {}
    for name, p in sorted(named.items(), key=lambda item: layout[item[0]]):
        kind = f" {'matrices' if p.dim() > 1 else 'vectors'}" if vectors else ""
        parts.setdefault(f"{layout[name]}{kind}", []).append(p)
    found = {part: Gradient(weights, [torch.zeros_like(p) for p in weights]) for part, weights in parts.items()}
    for p in problem.model.parameters():
        p.requires_grad_(True)
    for step in range(batches):
        problem.model.zero_grad(set_to_none=True)
        problem.loss_fn(problem.model, problem.batch(1000 + step)).backward()
        for gradient in found.values():
            gradient.add()
    return found


@contextmanager
def moved(weights: Sequence[Tensor], along: Sequence[Tensor], scale: float) -> Iterator[None]:
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, z in zip(weights, along, strict=True):
            w.add_(z, alpha=scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for w, old in zip(weights, before, strict=True):
                w.copy_(old)


@torch.no_grad()
def loss(problem: Problem) -> float:
    rows = list(range(0, len(problem.train.ids), max(1, len(problem.train.ids) // CURVED_ROWS)))[:CURVED_ROWS]
    parts = [problem.scorer.batch(problem.train, rows[at : at + 32]) for at in range(0, len(rows), 32)]
    return sum(float(problem.loss_fn(problem.model, part)) for part in parts) / len(parts)


def curvature(problem: Problem, weights: Sequence[Tensor], along: Sequence[Tensor], scale: float) -> float:
    with moved(weights, along, scale):
        up = loss(problem)
    with moved(weights, along, -scale):
        down = loss(problem)
    return (up + down - 2 * loss(problem)) / scale**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--directions", type=int, default=6)
    parser.add_argument("--vectors", action="store_true")
    options = parser.parse_args()
    problem = make(options.model, options.task, 512, TUNING_SEED, tuning=True)
    chance = torch.Generator().manual_seed(0)
    print("block          weights      E        rho     T        S")
    for block, gradient in by_block(problem, options.batches, options.vectors).items():
        n, weights = options.batches, gradient.weights
        energy = gradient.squares / n
        signal = (gradient.norm**2 - gradient.squares) / (n * (n - 1))
        size = sum(w.numel() for w in weights)
        bent = []
        for _ in range(options.directions):
            along = [torch.randint(0, 2, w.shape, generator=chance).float() * 2 - 1 for w in weights]
            bent.append(curvature(problem, weights, along, 2e-3))
        # a step of length one along the gradient
        sharp = curvature(problem, weights, gradient.total, 1 / gradient.norm) / gradient.norm**2
        trace = sum(bent) / len(bent)
        print(f"{block:12}  {size:10d}  {energy:7.2f}  {signal / energy:6.3f}  {trace:7.1f}  {sharp:7.2f}", flush=True)


if __name__ == "__main__":
    main()
