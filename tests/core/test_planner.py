"""The planner: its steps are evaluated directions, replay and resume are exact, and it is no worse than MeZO at the same cost."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.journal.record import Record
from blockzo.methods.auto import planned_method
from blockzo.methods.block_state import LEAST_SHARE, BlockState, share
from blockzo.methods.guard import Guard
from blockzo.methods.planner import Planner
from blockzo.optim.costs import LEAST, counted_costs
from blockzo.optim.cutting import fine_blocks
from tests.core import zoo

COSTS = (1.0, 1.0, 1.0, 0.05)


def auto(**settings: object) -> bz.Auto:
    return bz.Auto(costs=COSTS, **settings)


def blocks_of(model: nn.Module) -> bz.Blocks:
    return bz.Blocks(model, [1, 3, "head"])


class Bowl(nn.Module):
    """Layers whose parts of the loss add up: h |w - target|^2 / 2 each, plus the noise of a batch on the gradient."""

    class Part(nn.Module):
        def __init__(self, size: int, distance: float, curvature: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(size))
            self.target = torch.full((size,), distance / math.sqrt(size))
            self.curvature = curvature

        def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            total, noise = state
            own = self.curvature * ((self.weight - self.target) ** 2).sum() / 2
            return total + own + noise[: self.weight.numel()] @ self.weight, noise

    def __init__(self, distances: tuple[float, ...], curvatures: tuple[float, ...], size: int = 64) -> None:
        super().__init__()
        pairs = zip(distances, curvatures, strict=True)
        self.layers = nn.Sequential(*(self.Part(size, d, c) for d, c in pairs))

    def forward(self, noise: Tensor) -> Tensor:
        total, _ = self.layers((torch.zeros(()), noise))
        return total

    @torch.no_grad()
    def value(self) -> float:
        return float(self(torch.zeros(64)))


class Rows(Bowl):
    """A batch of rows of noise; the loss is the mean over them."""

    def forward(self, noise: Tensor) -> Tensor:
        return super().forward(noise.mean(0) if noise.dim() > 1 else noise)


@pytest.mark.parametrize(("spread", "more"), [(0.1, True), (8.0, False)])
def test_own_directions_are_taken_where_examples_agree(spread: float, more: bool) -> None:
    """Gains of the first block are those of its examples' gradients; with gradients that agree the loss falls lower."""
    size, rows, ends = 64, 16, {}
    for own in (True, False):
        model = Rows((3.0, 3.0, 3.0), (1.0, 1.0, 1.0), size)
        blocks = bz.Blocks(model, [1, 2], layers="layers")
        method, chance = bz.Auto(costs=(1.0,) * 3), torch.Generator().manual_seed(0)
        zo = bz.ZO(model, lambda m, b: m(b), method, blocks, eps=1e-2, seed=3, per_example=own)
        taken = planned = 0
        for _ in range(40 if more else 160):
            record = zo.step(spread * torch.randn(rows, size, generator=chance)).record
            found = zo.method_of(record)
            assert isinstance(found, bz.Decoupled)
            if not found.centre:
                planned += 1
                taken += sum(len(u.directions) for u in record.blocks) == rows * sum(found.directions)
                assert len(record.losses) == found.tree(3).leaves
        ends[own] = model.value()
        if own:
            assert zo.planner is not None
            if more:
                assert taken > 0.9 * planned and planned > 5
                # signal^2 of the batch over that of its rows / 16, early in training
                assert zo.planner.blocks[0].usual_gain > 4
            else:
                assert zo.planner.blocks[0].usual_gain < 2.5
        else:
            assert taken == 0
    assert ends[True] < ends[False] if more else ends[True] < 2 * ends[False]


def spend(model: Bowl, method: object, lr: float, budget: float, seed: int, eps: float = 1e-2) -> float:
    """Final noiseless loss after runs of blocks worth `budget`; infinite where it diverged."""
    blocks = bz.Blocks(model, [1, 2], layers="layers")
    costs = [1.0, 1.0, 1.0]
    zo = bz.ZO(model, lambda m, b: m(b), method, blocks, lr=lr, eps=eps, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    spent = 0.0
    while spent < budget:
        result = zo.step(0.3 * torch.randn(64, generator=generator))
        spent += zo.method_of(result.record).tree(3).flops(costs)
        if not math.isfinite(result.loss) or result.loss > 1e4:
            return math.inf
    return model.value()


EARLY, LATE = (3.0, 0.3, 0.3), (0.3, 0.3, 3.0)


@pytest.mark.parametrize(
    ("distances", "limit", "seeds"),
    [
        pytest.param(EARLY, 1.5, (1,), id="early"),
        pytest.param(LATE, 0.5, (1,), id="late"),
        pytest.param((2.0, 2.0, 2.0), 1.8, (1, 2), id="neither", marks=pytest.mark.slow),
        pytest.param(EARLY, 1.2, (1, 2, 3, 4), id="early, more seeds", marks=pytest.mark.slow),
        pytest.param(LATE, 0.5, (1, 2, 3, 4), id="late, more seeds", marks=pytest.mark.slow),
    ],
)
def test_against_mezo_at_the_same_cost(distances, limit: float, seeds: tuple[int, ...]) -> None:
    """The planner as it comes against MeZO with the best of three rates, chosen on the result itself; mean of the seeds.

    Where no block dominates there is nothing to find, and looking has its price; so has caution, for batches agree here far
    more than real ones do.
    """
    curvatures = (1.0, 1.0, 1.0)

    def mean(method: object, lr: float) -> float:
        return sum(spend(Bowl(distances, curvatures), method, lr, 3000.0, seed) for seed in seeds) / len(seeds)

    mezo = min(mean(bz.MeZO(), lr) for lr in (5e-4, 1e-3, 2e-3))
    assert mezo < Bowl(distances, curvatures).value()
    assert mean(bz.Auto(costs=(1.0,) * 3), 1.0) <= limit * mezo


def test_a_step_is_what_was_evaluated() -> None:
    """One block a step, its scalars those of moved copies, the update minus the coefficients times the same directions."""
    model, batch = zoo.make("llama"), zoo.batch()
    blocks = blocks_of(model)
    zo = bz.ZO(model, method=auto(), blocks=blocks, seed=3, eps=1e-2)
    for _ in range(14):
        before = copy.deepcopy(model)
        result = zo.step(batch)
        moved = [b for b, update in enumerate(result.record.blocks) if update.directions]
        assert len(moved) == 1
        update, noise = result.record.blocks[moved[0]], bz.Noise(result.seed)

        def loss(sign: int, k: int, before=before, noise=noise, block=moved[0], eps=update.eps) -> float:
            other = copy.deepcopy(before)
            with torch.no_grad():
                for name, parameter in other.named_parameters():
                    if blocks.layout[name] == block:
                        parameter.add_(sign * eps * noise.sample(name, parameter.shape, k))
                return float(other(**batch).loss)

        one_sided = planned_method(result.record).one_sided
        for k, scalar in result.scalars[moved[0]].items():
            slope = (loss(1, k) - loss(0 if one_sided else -1, k)) / ((1 if one_sided else 2) * update.eps)
            assert scalar * len(update.directions) == pytest.approx(slope, rel=1e-2, abs=1e-2)
        for name, parameter in model.named_parameters():
            wanted = before.get_parameter(name).detach().clone()
            if blocks.layout[name] == moved[0]:
                total = torch.zeros_like(wanted)
                for k, coefficient in zip(update.directions, update.coefficients, strict=True):
                    total = total + coefficient * noise.sample(name, wanted.shape, k)
                wanted = wanted - total
            assert torch.equal(parameter, wanted), name


def test_a_probe_keeps_its_directions_for_two_batches() -> None:
    model = zoo.make("llama")
    zo = bz.ZO(model, method=auto(), blocks=blocks_of(model), seed=3, eps=1e-2)
    zo.step(zoo.batch(seed=1))
    assert zo.planner is not None
    for _ in range(60):
        probes = [state.probes for state in zo.planner.blocks]
        first = zo.step(zoo.batch(seed=1))
        block = next(b for b, update in enumerate(first.record.blocks) if update.directions)
        begins = planned_method(first.record).centre and not any(first.record.blocks[block].coefficients)
        # the first visit of a block learns how far to go, and its weights stay
        if begins and probes[block]:
            break
    else:
        raise AssertionError("no block was probed twice in 60 steps")
    second = zo.step(zoo.batch(seed=2))
    assert first.seed == second.seed and first.losses != second.losses
    assert set(first.record.blocks[block].coefficients) == {0.0}
    lr = second.record.blocks[block].lr
    for k, coefficient in enumerate(second.record.blocks[block].coefficients):
        mean = (first.scalars[block][k] + second.scalars[block][k]) / 2
        assert 0 < lr and coefficient * mean >= 0 and abs(coefficient) <= lr * abs(mean) * (1 + 1e-6)


def test_every_block_is_visited_and_a_frozen_one_never() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    model.model.layers[1].requires_grad_(False)
    model.model.layers[2].requires_grad_(False)
    zo = bz.ZO(model, method=auto(), blocks=blocks_of(model), seed=3)
    visits = [0] * 4
    for _ in range(60):
        for block, update in enumerate(zo.step(batch).record.blocks):
            visits[block] += bool(update.directions)
    assert visits[1] == 0 and min(visits[0], visits[2], visits[3]) >= 2
    planner = zo.planner
    assert planner is not None and planner.probed > 0.1 * planner.spent


@pytest.mark.parametrize("stop", [1, 5, 9, 17])
@pytest.mark.parametrize("own", [False, True])
def test_resume_and_replay_give_the_run_that_was_not_stopped(own: bool, stop: int, tmp_path: Path) -> None:
    def run(path: Path, steps: int, resume: bool = False) -> tuple[str, nn.Module]:
        model = zoo.make("llama")
        blocks = blocks_of(model)
        # measured costs: they must come from the journal, not from another measurement
        journal = bz.Journal.resume(path) if resume else bz.Journal.create(path, bz.digest(model), blocks.layout)
        with journal:
            zo = bz.ZO(model, method="auto", blocks=blocks, seed=9, eps=1e-2, journal=journal, per_example=own)
            while zo.step_number < steps:
                zo.step(zoo.batch(seed=zo.step_number))
        return bz.digest(model), model

    whole, _ = run(tmp_path / "whole", 22)
    data = (tmp_path / "whole").read_bytes()
    journal = bz.Journal.open(tmp_path / "whole")
    with bz.Journal.create(tmp_path / "cut", journal.base_digest, journal.layout) as cut:
        assert journal.plan is not None
        cut.add_plan(journal.plan)
        for record in journal.records()[:stop]:
            cut.append(record)
    assert run(tmp_path / "cut", 22, resume=True)[0] == whole
    assert (tmp_path / "cut").read_bytes() == data
    base = zoo.make("llama")
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == whole


def test_the_state_of_a_block_finds_energy_curvature_and_confidence() -> None:
    """On a quadratic whose gradient and trace are known."""
    size, curvature = 64, 2.0
    model = Bowl((3.0, 1.0, 1.0), (curvature, 1.0, 1.0), size)
    blocks = bz.Blocks(model, [1, 2], layers="layers")
    zo = bz.ZO(model, lambda m, b: m(b), bz.Auto(costs=(1.0,) * 3, explore=0.9), blocks, lr=1e-9, eps=1e-2, seed=2)
    generator = torch.Generator().manual_seed(0)
    spread = 0.5
    for _ in range(400):
        zo.step(spread * torch.randn(size, generator=generator))
    assert zo.planner is not None
    state: BlockState = zo.planner.blocks[0]
    signal, sampled = (curvature * 3.0) ** 2, spread**2 * size
    assert state.energy.value == pytest.approx(signal + sampled, rel=0.5)
    # floor of the curvature: the energy; above it E[s^2 c] / E[s^2] = trace, for Rademacher noise and a diagonal Hessian
    assert state.curvature == pytest.approx(curvature * size, rel=0.5)
    assert state.confidence == pytest.approx(signal / (signal + sampled), abs=0.25)


@pytest.mark.parametrize(
    ("rise", "jump", "steps", "low", "high"),
    [
        (0.0, 0.0, 400, 0.5, 1.0),
        (-1.0, 0.0, 4000, 0.5, 1.0),
        (0.3, 0.0, 480, 0.0, 0.25),  # a drift; 0.32 without the stretches of 80 steps
        (0.0, 1.0, 10, 0.0, 0.5),  # a collapse, before a stretch of 20 steps is over
    ],
)
def test_rates_are_halved_while_the_loss_rises_and_not_by_noise(
    rise: float, jump: float, steps: int, low: float, high: float
) -> None:
    factors = []
    for seed in range(21):
        noise = (0.25 * torch.randn(100 + steps, generator=torch.Generator().manual_seed(seed))).tolist()
        guard = Guard(20)
        for step, value in enumerate(noise):
            guard.add(1.0 + rise * max(0, step - 100) / steps + jump * (step >= 100) + value)
        factors.append(guard.factor)
    assert low <= sorted(factors)[10] <= high


def told(first: list[float], second: list[float], times: int, energy: float = 1.0) -> BlockState:
    """A block of that energy, with so many looks at the same slopes."""
    state = BlockState(8.0, 0.6)
    state.energy.add(energy, 8.0)
    for _ in range(times):
        state.confirm(first, second)
    return state


def test_batches_are_taken_to_share_little_until_many_looks_say_otherwise() -> None:
    """A lucky look along two directions is not believed, one along many is; what all blocks share bounds what one is told."""
    lucky, sure = told([1.0, 1.0], [1.0, 1.0], 1), told([1.0] * 64, [1.0] * 64, 8)
    assert share([]) == LEAST_SHARE and share([lucky.looks]) < 0.3
    assert share([sure.looks]) == pytest.approx(1 - sure.looks[1] ** -0.5) and share([sure.looks]) > 0.85
    assert lucky.confidence < 0.15 and sure.confidence > 0.75
    against = told([1.0, -1.0] * 32, [1.0, 1.0] * 32, 8)
    assert share([against.looks]) == against.confidence == LEAST_SHARE
    # the same looks, where other blocks have shown that batches share much
    lucky.usual_share = 0.8
    assert lucky.confidence > 0.7


def test_looks_at_far_more_energy_than_there_is_now_count_little() -> None:
    state = told([1.0] * 64, [1.0] * 64, 8)
    before, looks = state.confidence, state.looks[1]
    state.energy.value = 0.1
    assert state.looks[1] == pytest.approx(looks / 100) and state.confidence < before / 5


@pytest.mark.parametrize(("shared", "least", "most"), [(0.03, 0.9, 1.6), (1.0, 2.5, 3.6)])
def test_sharpness_lies_between_that_of_examples_and_the_largest(shared: float, least: float, most: float) -> None:
    """Of a Hessian of 9 curvatures 1, from Gaussian directions: tr H = 9, tr H^2 / tr H = 1, sqrt(tr H^2) = 3."""
    chance = torch.Generator().manual_seed(0)
    state = BlockState(1000.0, 0.6)
    state.energy.add(0.1, 8.0)
    for c in torch.randn(2000, 9, generator=chance).square().sum(1).tolist():
        for mean, value in ((state.plain, c), (state.squared, c * c), (state.along, c), (state.weight, 1.0)):
            mean.add(value, 0.5)
    state.probes, state.usual_share = 1000, shared
    assert least <= state.sharpness <= most


def test_the_block_in_use_is_looked_at_the_more_often_the_less_batches_share() -> None:
    """With one block there is none to visit in turn: all looks but those of `explore` are at the block in use."""
    looks = {}
    for noise in (0.0, 4.0):
        model, chance = Bowl((3.0,), (1.0,)), torch.Generator().manual_seed(0)
        zo = bz.ZO(model, lambda m, b: m(b), bz.Auto(costs=(1.0,), explore=0.05), lr=1e-3, eps=1e-2, seed=1)
        methods = [zo.method_of(zo.step(noise * torch.randn(64, generator=chance)).record) for _ in range(200)]
        looks[noise] = sum(isinstance(method, bz.Decoupled) and method.centre for method in methods)
    assert looks[0.0] < 50 < 80 < looks[4.0]


def test_a_factor_lifts_a_rate_up_to_caution_times_the_best_and_no_further() -> None:
    state = BlockState(8.0, 0.6)
    for mean in (state.energy, state.plain, state.squared, state.along, state.weight, state.confirmed, state.tried):
        mean.add(4.0, 8.0)
    state.probes = 3
    best = state.rate(2, 1e9) / 0.6
    rates = [state.rate(2, factor) / best for factor in (0.5, 1.0, 1.5, 2.0, 3.0)]
    assert rates == pytest.approx([0.15, 0.3, 0.45, 0.6, 0.6])
    assert best == pytest.approx(state.confidence * 2 / (state.curvature + state.sharpness))


def test_default_blocks_and_settings() -> None:
    model = zoo.make("llama")
    assert fine_blocks(model).starts == [0, 1, 2, 3, 4]
    assert fine_blocks(nn.Linear(3, 3)).starts == [0]
    assert len(bz.ZO(model, method="auto").blocks) == 5
    planner = Planner(bz.Auto(), [1.0, 1.0], [True, True], [1e-3, 1e-3])
    assert planner.plan(0, lambda step: 7, [1.0, 1.0]).seed == 7


def test_a_seed_says_what_is_chosen_whatever_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks cost their FLOPs; those without products a fifth of a layer."""
    clock = iter(2.0**n for n in range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def run(costs: Literal["seconds"] | None) -> tuple[list[float], list[Record]]:
        model = zoo.make("llama")
        zo = bz.ZO(model, method=bz.Auto(costs=costs), seed=5)
        records = [zo.step(zoo.batch(seed=step)).record for step in range(12)]
        assert zo.planner is not None
        return zo.planner.costs, records

    first, second = run(None), run(None)
    assert first == second
    embedding, *layers, head = first[0]
    assert sum(layers) + embedding + head == pytest.approx(1)
    assert run("seconds")[0] != run("seconds")[0]


def test_blocks_without_products_cost_part_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.LayerNorm(8))
    x = torch.ones(2, 8)
    blocks = bz.Blocks(model, [1, 2, 3])
    assert counted_costs(blocks, lambda: model(x).sum()) == [0.5, 0.5, LEAST / 4, LEAST / 4]
    assert counted_costs(blocks, lambda: model(x).sum(), whole=True) == [0.25] * 4
    plain = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    assert counted_costs(bz.Blocks(plain, [1]), lambda: plain(x).sum()) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: bz.Auto(explore=0.0), "0 < explore < 1"),
        (lambda: bz.Auto(costs=(1.0, 0.0)), "positive number"),
        (lambda: bz.Auto(costs="flops"), "'flops'; expected \"seconds\""),  # type: ignore[arg-type]
        (lambda: bz.ZO(zoo.make("llama"), method="best"), 'expected "auto"'),
        (lambda: bz.ZO(zoo.make("llama"), method="auto", evaluate="in_place"), "perturbed"),
        (lambda: bz.ZO(zoo.make("llama"), method=bz.Auto(costs=(1.0,))).step(zoo.batch()), "one a block"),
    ],
)
def test_bad_settings(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
