"""The baselines: every update against a textbook computation with materialised noise, in float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from statistics import stdev

import pytest
import torch
from torch import Tensor, nn

from benchmarks.baselines import decomfl, fedkseed
from benchmarks.baselines.backprop import ALPHA, RANK, Backprop, add_lora
from benchmarks.baselines.fzoo import EagerFZOO
from benchmarks.baselines.noise import Use, normal_noise, sign_noise
from benchmarks.baselines.spsa import EagerSPSA
from blockzo.optim.step import step_seed

LR, EPS, SEED = 0.05, 1e-3, 3
Batch = tuple[Tensor, Tensor]


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 3, generator=generator).double(), torch.randn(5, 1, generator=generator).double())
        for _ in range(count)
    ]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def at(weights: Tensor) -> nn.Module:
    model = model_of()
    nn.utils.vector_to_parameters(weights, model.parameters())
    return model


def value(weights: Tensor, batch: Batch) -> float:
    with torch.no_grad():
        return float(loss(at(weights), batch))


def z(seed: int, draw: Callable[[int, list[Tensor], Use], None] = normal_noise) -> Tensor:
    """The direction of a seed, whole."""
    found: list[Tensor] = []
    draw(seed, [p.detach() for p in model_of().parameters()], lambda _, noise: found.append(noise.reshape(-1)))
    return torch.cat(found)


def pair(weights: Tensor, batch: Batch, seed: int) -> float:
    return (value(weights + EPS * z(seed), batch) - value(weights - EPS * z(seed), batch)) / (2 * EPS)


def same(model: nn.Module, wanted: Tensor) -> None:
    torch.testing.assert_close(flat(model), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("draw", [normal_noise, sign_noise])
def test_a_seed_is_a_direction(draw: Callable[[int, list[Tensor], Use], None]) -> None:
    assert torch.equal(z(5, draw), z(5, draw)) and not torch.equal(z(5, draw), z(6, draw))
    if draw is sign_noise:
        assert set(z(5, draw).tolist()) == {-1.0, 1.0}


def test_n_spsa() -> None:
    model, (batch,) = model_of(), batches(1)
    w, seeds = flat(model), [step_seed(step_seed(SEED, 0), i) for i in range(4)]
    slopes = [pair(w, batch, seed) for seed in seeds]
    found = EagerSPSA(model, loss, LR, EPS, SEED, 4).step(batch)
    assert found == pytest.approx(slopes, abs=1e-9)
    same(model, w - LR / 4 * sum((s * z(seed) for s, seed in zip(slopes, seeds, strict=True)), torch.zeros_like(w)))


def test_fzoo() -> None:
    model, (batch,) = model_of(), batches(1)
    w, seeds = flat(model), [step_seed(step_seed(SEED, 0), i) for i in range(8)]
    signs = [z(seed, sign_noise) for seed in seeds]
    losses, base = [value(w + EPS * u, batch) for u in signs], value(w, batch)
    direction = sum(((one - base) * u for one, u in zip(losses, signs, strict=True)), torch.zeros_like(w))
    assert EagerFZOO(model, loss, LR, EPS, SEED, 8).step(batch) == pytest.approx(losses, abs=1e-12)
    same(model, w - LR / (8 * EPS * stdev(losses)) * direction)


def walked(w: Tensor, seeds: Sequence[int], given: Sequence[Batch], directions: int) -> decomfl.Scalars:
    """What a client of DeComFL finds on its way, from noise in memory."""
    found = []
    for seed, batch in zip(seeds, given, strict=True):
        zs = [z(step_seed(seed, p)) for p in range(directions)]
        step = [(value(w + EPS * one, batch) - value(w, batch)) / EPS for one in zs]
        w = w - LR / directions * sum((s * one for s, one in zip(step, zs, strict=True)), torch.zeros_like(w))
        found.append(step)
    return found


def test_decomfl_with_replay_of_missed_rounds() -> None:
    model, given, rounds = model_of(), batches(6), [[11, 12], [21, 22], [31, 32]]
    w = start = flat(model)
    sent = decomfl.DeComFLClient(model, loss).local(rounds[0], given[:2], 5, LR, EPS)
    wanted = walked(w, rounds[0], given[:2], 5)
    assert [s for step in sent for s in step] == pytest.approx([s for step in wanted for s in step], abs=1e-8)
    same(model, start)
    other = walked(w, rounds[0], given[2:4], 5)
    mean = decomfl.averaged([wanted, other])
    assert mean[1][4] == pytest.approx((wanted[1][4] + other[1][4]) / 2)
    # who was away for the rounds so far ends where their updates, each along noise in memory, lead
    for seeds, scalars in zip(rounds, [mean, wanted, other], strict=True):
        for seed, step in zip(seeds, scalars, strict=True):
            for p, scalar in enumerate(step):
                w = w - LR / 5 * scalar * z(step_seed(seed, p))
    late = decomfl.DeComFLClient(model_of(), loss)
    late.replay([seed for seeds in rounds for seed in seeds], mean + wanted + other, LR)
    same(late.model, w)
    assert len(decomfl.message(sent)) == 4 * 2 * 5


def test_fedkseed() -> None:
    seeds, given, model = [5, 6, 7], batches(4), model_of()
    w, chance = flat(model), random.Random(0)
    numbers = [chance.randrange(3) for _ in given]
    client = fedkseed.FedKSeedClient(model, loss)
    sent = client.local(seeds, given, LR, EPS, random.Random(0))
    sums, base = [0.0] * 3, w
    for (number, slope), wanted, batch in zip(sent, numbers, given, strict=True):
        assert number == wanted and slope == pytest.approx(pair(w, batch, seeds[number]), abs=1e-8)
        w = w - LR * slope * z(seeds[number])
        sums[number] += slope
    same(model, w)
    assert len(set(numbers)) < len(numbers), "some seed comes twice"
    assert fedkseed.accumulated([0.0] * 3, sent) == pytest.approx(sums)
    built = fedkseed.FedKSeedClient(model_of(), loss)
    built.build(seeds, sums, LR)
    same(built.model, base - LR * sum((s * z(k) for k, s in zip(seeds, sums, strict=True)), torch.zeros_like(w)))
    assert len(fedkseed.message(sent)) == 6 * len(given)


def adam(weights: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]], decay: float) -> list[Tensor]:
    """AdamW of its paper, algorithm 2, with torch's defaults for the rest."""
    found = []
    for number, weight in enumerate(weights):
        m = v = torch.zeros_like(weight)
        for t, step in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * step[number], 0.999 * v + 0.001 * step[number].square()
            weight = weight * (1 - LR * decay) - LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        found.append(weight)
    return found


def test_adamw() -> None:
    model, (batch,) = model_of(), batches(1)
    # the gradient of the last bias is twice the mean error
    with torch.no_grad():
        slope = 2 * (model(batch[0]) - batch[1]).mean()
    w = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(loss(model, batch), list(model.parameters()))
    torch.testing.assert_close(gradients[-1][0], slope)
    Backprop(model, loss, LR, weight_decay=0.1).step(batch)
    for found, wanted in zip(model.parameters(), adam(w, [gradients], 0.1), strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-12)


def test_lora_moves_its_matrices_alone_by_the_chain_rule() -> None:
    torch.manual_seed(2)
    model, (batch,) = model_of(), batches(1)
    add_lora(model, ["0"])
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    a, b = (next(p for name, p in names.items() if f"lora_{which}" in name) for which in "AB")
    assert len(names) == 2 and a.shape == (RANK, 3) and b.shape == (4, RANK)
    with torch.no_grad():
        b.normal_()
    a_before, b_before, scale = a.detach().clone(), b.detach().clone(), ALPHA / RANK
    plain = model_of()
    whole = (plain[0].weight.detach() + scale * b_before @ a_before).requires_grad_()
    plain[0].weight = nn.Parameter(whole.detach())
    (gradient,) = torch.autograd.grad(loss(plain, batch), [plain[0].weight])
    backprop = Backprop(model, loss, LR)
    backprop.step(batch)
    wanted = adam([a_before, b_before], [[scale * b_before.T @ gradient, scale * gradient @ a_before.T]], decay=0.0)
    torch.testing.assert_close(a.detach(), wanted[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(b.detach(), wanted[1], rtol=0, atol=1e-9)
    assert backprop.message_bytes() == 8 * RANK * (3 + 4)


def test_checkpointing_changes_what_is_kept_and_not_the_step() -> None:
    from benchmarks.shapes.models import SHAPES, batch, build, language_loss

    shape = SHAPES["tiny"]
    plain = build(shape)
    again = copy.deepcopy(plain)
    data, kept = batch(shape, 2, 8), {False: 0, True: 0}
    for checkpointing, model in ((False, plain), (True, again)):
        backprop = Backprop(model, language_loss, 1e-3, checkpointing)

        def pack(tensor: Tensor, which: bool = checkpointing) -> Tensor:
            kept[which] += tensor.numel() * (not isinstance(tensor, nn.Parameter))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backprop.step(data)
    assert kept[True] < kept[False]
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
