"""`examples/ports/eggroll.py`: a generation is the paper's, made once more with weights and noise in memory; and it learns."""

from __future__ import annotations

import copy
import runpy
from typing import Any

import torch
from torch import Tensor, nn

import blockzo as bz
from tests.packaging.builds import ROOT

PORT = runpy.run_path(str(ROOT / "examples" / "ports" / "eggroll.py"))


def problem() -> tuple[nn.Module, Any]:
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 4)
    x = torch.randn(96, 16, generator=draw)
    labels = (x @ torch.randn(16, 3, generator=draw)).argmax(1)

    def loss(m: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(m(x), labels)

    return model, loss


def test_a_generation_is_that_of_members_in_memory() -> None:
    model, loss = problem()
    start, pairs, sigma, lr = copy.deepcopy(model), 3, 0.05, 0.1
    mean = PORT["generation"](model, lambda: loss(model), 7, pairs, sigma, lr, 1)
    assert torch.linalg.matrix_rank(bz.Noise(7, "gaussian", 1).sample("0.weight", (40, 16))) == 1
    noise, losses, drawn = bz.Noise(7, "gaussian", 1), [], []
    for k in range(pairs):
        drawn.append({name: noise.sample(name, p.shape, k) for name, p in start.named_parameters()})
        for sign in (1, -1):
            member = copy.deepcopy(start)
            with torch.no_grad():
                for name, parameter in member.named_parameters():
                    parameter += sign * sigma * drawn[-1][name]
                losses.append(float(loss(member)))
    fitness = torch.tensor(losses, dtype=torch.float64)
    fitness = (fitness - fitness.mean()) / fitness.std()
    assert abs(mean - sum(losses) / len(losses)) < 1e-5
    for name, parameter in start.named_parameters():
        each = [sign * z[name] for z in drawn for sign in (1, -1)]
        move = sum(float(f) * z for f, z in zip(fitness, each, strict=True))
        torch.testing.assert_close(
            dict(model.named_parameters())[name], parameter - lr * move / (2 * pairs), rtol=1e-3, atol=1e-4
        )


def test_it_learns() -> None:
    model, loss = problem()
    found = [PORT["generation"](model, lambda: loss(model), seed, 8, 0.05, 0.05) for seed in range(30)]
    assert found[-1] < 0.8 * found[0]
