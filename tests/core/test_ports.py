"""The ports of examples/ports against each paper's loop written plainly: directions by the NumPy contract, everything copied."""

from __future__ import annotations

import copy
import random
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import fmean, pstdev, stdev
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from tests.reference import contract

PORTS = Path(__file__).resolve().parents[2] / "examples" / "ports"
EPS, LR, SEEDS = 1e-2, 1e-2, [2**64 - 3, 5, 77]
X = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
Weights = dict[str, Tensor]


def port(name: str) -> ModuleType:
    spec = spec_from_file_location(f"ports_{name}", PORTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).requires_grad_(True)


def loss(net: nn.Module, batch: int = 0) -> Tensor:
    with torch.no_grad():
        return (net(X[batch]) - X[batch].sum(1, keepdim=True).sin()).square().mean()


def moved(net: nn.Module, seed: int, scale: float, direction: int = 0, distribution: str = "gaussian") -> nn.Module:
    """A copy at w + scale z."""
    other = copy.deepcopy(net)
    for name, p in other.named_parameters():
        z = contract.noise(0, p.numel(), seed, distribution, bz.stream_id(name), direction)
        p.data += scale * torch.from_numpy(z).view(p.shape)
    return other


def close(found: nn.Module, wanted: nn.Module) -> None:
    for mine, its in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def along(before: nn.Module, after: nn.Module, terms: list[tuple[int, int, float]], distribution: str) -> bool:
    """Did every weight go by the contract's bits: w - sum of c z over (seed, direction, c), summed in order, rounded once?"""
    for (name, w), its in zip(before.named_parameters(), after.parameters(), strict=True):
        total = np.zeros(w.numel(), dtype=np.float32)
        for seed, direction, c in terms:
            z = contract.noise(0, w.numel(), seed, distribution, bz.stream_id(name), direction)
            total = total + np.float32(c) * z
        if not np.array_equal(w.detach().numpy().reshape(-1) - total, its.detach().numpy().reshape(-1)):
            return False
    return True


def test_mezo(net: nn.Sequential) -> None:
    plain = copy.deepcopy(net)
    step = port("mezo").mezo_step
    for seed in SEEDS:
        slope = step(net, lambda: float(loss(net)), seed, LR, EPS)
        wanted = float(loss(moved(plain, seed, EPS)) - loss(moved(plain, seed, -EPS))) / (2 * EPS)
        assert slope == pytest.approx(wanted, rel=1e-3)
        plain = moved(plain, seed, -LR * wanted)
        close(net, plain)


def test_decomfl(net: nn.Sequential) -> None:
    module, clients, p = port("decomfl"), 2, 2
    received = []
    for client in range(clients):
        before = bz.digest(net)
        received.append(module.local_scalars(net, lambda m, k, c=client: loss(m, (k + c) % 3), SEEDS, p, LR, EPS))
        assert bz.digest(net) == before
        plain = copy.deepcopy(net)
        for k, seed in enumerate(SEEDS):
            here, batch = loss(plain, (k + client) % 3), (k + client) % 3
            wanted = [float(loss(moved(plain, seed, EPS, d), batch) - here) / EPS for d in range(p)]
            assert received[-1][k] == pytest.approx(wanted, rel=2e-3, abs=1e-4)
            for d, s in enumerate(wanted):
                plain = moved(plain, seed, -LR * s / p, d)
    mean = module.averaged(received)
    at_once, one_by_one = copy.deepcopy(net), copy.deepcopy(net)
    module.catch_up(at_once, SEEDS, mean, LR)
    for seed, step in zip(SEEDS, mean, strict=True):
        before = copy.deepcopy(one_by_one)
        module.catch_up(one_by_one, [seed], [step], LR)
        assert along(before, one_by_one, [(seed, d, LR * s / p) for d, s in enumerate(step)], "gaussian")
    assert bz.digest(at_once) == bz.digest(one_by_one)


def test_fzoo(net: nn.Sequential) -> None:
    before, n = copy.deepcopy(net), 4
    found = port("fzoo").fzoo_step(net, lambda: loss(net), SEEDS[0], LR, EPS, n)
    losses = [float(loss(moved(before, SEEDS[0], EPS, d, "rademacher"))) for d in range(n)]
    wanted = [LR * (x - float(loss(before))) / (n * EPS * stdev(losses)) for x in losses]
    assert found == pytest.approx(wanted, rel=1e-2, abs=1e-4)
    assert along(before, net, [(SEEDS[0], d, c) for d, c in enumerate(found)], "rademacher")


def test_fedkseed(net: nn.Sequential) -> None:
    module, base = port("fedkseed"), copy.deepcopy(net)
    sums = module.local_sums(net, lambda step: loss(net, step % 3), SEEDS, 6, LR, EPS, random.Random(1))
    plain, chance, wanted = copy.deepcopy(base), random.Random(1), [0.0] * len(SEEDS)
    for step in range(6):
        j = chance.randrange(len(SEEDS))
        ends = [float(loss(moved(plain, SEEDS[j], sign * EPS), step % 3)) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * EPS)
        wanted[j] += slope
        plain = moved(plain, SEEDS[j], -LR * slope)
    assert sums == pytest.approx(wanted, rel=5e-3, abs=1e-3)
    built = copy.deepcopy(base)
    module.build(built, SEEDS, sums, LR)
    close(built, net)
    assert along(base, built, [(seed, 0, LR * s) for seed, s in zip(SEEDS, sums, strict=True)], "gaussian")


def test_es(net: nn.Sequential) -> None:
    before = copy.deepcopy(net)
    rewards = port("es").es_step(net, lambda: -float(loss(net)), SEEDS, LR, 0.1)
    wanted = [-float(loss(moved(before, seed, 0.1))) for seed in SEEDS]
    assert rewards == pytest.approx(wanted, rel=1e-3)
    scores = [(r - fmean(rewards)) / (pstdev(rewards) + 1e-8) for r in rewards]
    terms = [(seed, 0, -LR * score / 3) for seed, score in zip(SEEDS, scores, strict=True)]
    assert along(before, net, terms, "gaussian")


def test_sparse_mezo(net: nn.Sequential) -> None:
    module = port("sparse_mezo")
    bounds = module.thresholds(net, 0.4)
    assert set(bounds) == {"0.weight", "2.weight"}
    assert [int((net[k].weight.abs() <= bounds[f"{k}.weight"]).sum()) for k in (0, 2)] == [14, 2]
    for seed in SEEDS:
        before = copy.deepcopy(net)
        slope = module.sparse_mezo_step(net, lambda: loss(net), bounds, seed, LR, EPS)
        masks = {n: p.abs() <= bounds.get(n, float("inf")) for n, p in before.named_parameters()}
        ends = []
        for sign in (1, -1):
            there = moved(before, seed, sign * EPS)
            for (n, p), w in zip(there.named_parameters(), before.parameters(), strict=True):
                p.data = torch.where(masks[n], p, w)
            ends.append(float(loss(there)))
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * EPS), rel=1e-2)
        whole = copy.deepcopy(before)
        bz.update_(whole, bz.Noise(seed, "gaussian"), [LR * slope])
        assert along(before, whole, [(seed, 0, LR * slope)], "gaussian")
        for (n, p), w, its in zip(net.named_parameters(), before.parameters(), whole.parameters(), strict=True):
            assert torch.equal(p, torch.where(masks[n], its, w))


def test_lozo(net: nn.Sequential) -> None:
    """Rank 2, V kept for two steps; the last layer has one row, so its noise is full."""
    step, rank = port("lozo").lozo_step, 2

    def direction(number: int) -> Weights:
        own, lazy, z = (3 << 32) + number, (3 << 32) + (1 << 31) + number // 2, {}
        for name, p in net.named_parameters():
            stream = bz.stream_id(name)
            if name == "0.weight":
                u = contract.noise(1 << 63, 7 * rank, own, "gaussian", stream, 0).reshape(7, rank)
                v = contract.noise(3 << 62, 5 * rank, lazy, "gaussian", stream, 0).reshape(5, rank)
                z[name] = torch.from_numpy(u @ v.T) / 2**0.5
            else:
                z[name] = torch.from_numpy(contract.noise(0, p.numel(), own, "gaussian", stream, 0)).view(p.shape)
        return z

    def at(plain: nn.Module, z: Weights, scale: float) -> nn.Module:
        other = copy.deepcopy(plain)
        for name, p in other.named_parameters():
            p.data += scale * z[name]
        return other

    plain, first = copy.deepcopy(net), net[0].weight.detach().clone()
    for number in range(4):
        z = direction(number)
        slope = step(net, lambda: loss(net), number, LR, EPS, rank, 2, 3)
        wanted = float(loss(at(plain, z, EPS)) - loss(at(plain, z, -EPS))) / (2 * EPS)
        assert slope == pytest.approx(wanted, rel=1e-2)
        plain = at(plain, z, -LR * wanted)
        close(net, plain)
        if number == 1:
            # two steps of one interval lie in one subspace
            assert int(torch.linalg.matrix_rank(net[0].weight.detach() - first, rtol=1e-3)) == rank
