"""Every method: the update is minus the learning rate times the stated combination of the directions that were evaluated."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import blockzo as bz
from blockzo.methods import METHODS, Method, named
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.step import step_seed
from tests.core import zoo

ONE_BLOCK = [bz.MeZO(), bz.SPSA(3), bz.OneSided(3), bz.FZOO(4)]
TWO_BLOCKS = [
    bz.SPZO(1, 4),
    bz.SPZO(2, 3, "coupled"),
    bz.SPZO(2, 2, "crossed"),
    bz.SPZO(2, 2, "decoupled"),
    bz.SPZO(2, 2, one_sided=True),
    bz.SPZO(2, 2, "decoupled", one_sided=True),
    bz.Tree((2, 2)),
    bz.Tree((2, 2), one_sided=True),
    bz.SPSA(2),
    bz.OneSided(2),
]
THREE_BLOCKS = [
    bz.MeZO(),
    bz.Tree((1, 2, 2)),
    bz.Tree((2, 1, 3), one_sided=True),
    bz.Tree((0, 2, 2)),
    bz.Tree((2, 0, 2)),
    bz.Tree((0, 3, 0), one_sided=True),
    bz.Tree((1, 2, 1), signs="crossed"),
    bz.Tree((2, 0, 1), signs="crossed"),
    bz.Decoupled((2, 1, 3)),
    bz.Decoupled((0, 2, 0), centre=True),
    bz.Decoupled((1, 0, 2), centre=True),
    bz.Decoupled((2, 0, 0)),
    bz.Decoupled((1, 0, 3), one_sided=True),
]
CASES = [(m, []) for m in ONE_BLOCK] + [(m, [2]) for m in TWO_BLOCKS] + [(m, [1, 3]) for m in THREE_BLOCKS]


class Naive:
    """The methods written from docs/methods.md, on copies of the model that are moved with materialised noise."""

    def __init__(
        self, model: nn.Module, layout: dict[str, int], seed: int, distribution: str, eps: Sequence[float], loss
    ) -> None:
        self.model, self.layout, self.eps, self.loss = model, layout, eps, loss
        self.noise = bz.Noise(seed, distribution)
        self.blocks = max(layout.values()) + 1

    def __call__(self, *moves: tuple[int, int, int]) -> float:
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                for block, direction, sign in moves:
                    if self.layout.get(name) == block:
                        z = self.noise.sample(name, parameter.shape, direction)
                        parameter.copy_((parameter.float() + sign * self.eps[block] * z).to(parameter.dtype))
            return float(self.loss(other))

    def scalars(self, method) -> list[dict[int, float]]:
        eps, every = self.eps, range(self.blocks)
        if isinstance(method, bz.MeZO):
            method = bz.SPSA(1)
        if isinstance(method, bz.SPSA):
            n = method.directions
            d = [self(*((b, i, 1) for b in every)) - self(*((b, i, -1) for b in every)) for i in range(n)]
            return [{i: d[i] / (2 * eps[b] * n) for i in range(n)} for b in every]
        if isinstance(method, (bz.OneSided, bz.FZOO)):
            n, base = method.directions, self()
            moved = [self(*((b, i, 1) for b in every)) for i in range(n)]
            scale = torch.tensor(moved, dtype=torch.float64).std().item() if isinstance(method, bz.FZOO) else 1.0
            return [{i: (moved[i] - base) / (eps[b] * n * scale) for i in range(n)} for b in every]
        if isinstance(method, bz.SPZO) and method.variant != "coupled":
            p, k = method.outer, method.inner
            if method.one_sided:
                base = self()
                late = {j: (self((1, j, 1)) - base) / (eps[1] * p * k) for j in range(p * k)}
                return [{i: (self((0, i, 1)) - base) / (eps[0] * p) for i in range(p)}, late]
            if method.variant == "decoupled":
                late = {j: (self((1, j, 1)) - self((1, j, -1))) / (2 * eps[1] * p * k) for j in range(p * k)}
                early = {i: (self((0, i, 1)) - self((0, i, -1))) / (2 * eps[0] * p) for i in range(p)}
                return [early, late]
            early, late = dict.fromkeys(range(p), 0.0), {}
            for i in range(p):
                for j in range(i * k, (i + 1) * k):
                    pp, pm, mp, mm = (self((0, i, a), (1, j, b)) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)))
                    late[j] = (pp - pm + mp - mm) / (4 * eps[1] * p * k)
                    early[i] += (pp - mp + pm - mm) / (4 * eps[0] * p * k)
            return [early, late]
        if isinstance(method, bz.Decoupled):
            base = self()
            other = (lambda b, k: self((b, k, -1))) if not method.one_sided else (lambda b, k: base)
            width = 1 if method.one_sided else 2
            return [
                {k: (self((b, k, 1)) - other(b, k)) / (width * eps[b] * n) for k in range(n)}
                for b, n in enumerate(method.directions)
            ]
        levels = (method.outer, method.inner) if isinstance(method, bz.SPZO) else method.levels
        moved = [b for b, level in enumerate(levels) if level]
        counts = [levels[b] for b in moved]
        result: list[dict[int, float]] = [{} for _ in levels]
        base = self()
        for leaf in range(math.prod(counts)):
            path = [(b, leaf // math.prod(counts[place + 1 :])) for place, b in enumerate(moved)]
            if getattr(method, "signs", "coupled") == "crossed":
                patterns = list(itertools.product((1, -1), repeat=len(moved)))
            else:
                patterns = [(1,) * len(moved), (-1,) * len(moved)]
            if getattr(method, "one_sided", False):
                slope = self(*((b, i, 1) for b, i in path)) - base
                slopes = [slope] * len(moved)
            else:
                losses = [self(*((b, i, s) for (b, i), s in zip(path, signs, strict=True))) for signs in patterns]
                slopes = [
                    sum(signs[place] * loss for signs, loss in zip(patterns, losses, strict=True)) / len(patterns)
                    for place in range(len(moved))
                ]
            for (b, i), slope in zip(path, slopes, strict=True):
                result[b][i] = result[b].get(i, 0.0) + slope / (eps[b] * math.prod(counts))
        return result


def expected_weights(model: nn.Module, record: bz.Record, layout: dict[str, int], decay: float) -> dict[str, Tensor]:
    """w * (1 - lr * decay) - sum_k c_k z_k with materialised noise, each operation rounded on its own."""
    noise = bz.Noise(record.seed, record.distribution)
    result = {}
    for name, parameter in model.named_parameters():
        part = record.blocks[layout[name]]
        total = torch.zeros(parameter.shape)
        for direction, coefficient in zip(part.directions, part.coefficients, strict=True):
            total = total + coefficient * noise.sample(name, parameter.shape, direction)
        # a block without directions rests
        rate = part.lr * decay if part.directions else 0.0
        value = parameter.detach().float() * torch.tensor(1.0 - rate, dtype=torch.float64).float()
        result[name] = (value - total).to(parameter.dtype)
    return result


@pytest.mark.parametrize(
    ("method", "cut", "distribution"),
    [
        # one distribution each; what a method makes of losses does not ask for it
        pytest.param(*case, distribution, marks=[] if (number + k) % 2 else pytest.mark.slow)
        for number, case in enumerate(CASES)
        for k, distribution in enumerate(("rademacher", "gaussian"))
    ],
    ids=str,
)
def test_the_update_is_the_stated_combination_of_what_was_evaluated(method, cut, distribution: str) -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    blocks = bz.Blocks(model, cut)
    rates = [0.3 * (b + 1) for b in range(len(blocks))]
    eps = [1e-2 / (b + 1) for b in range(len(blocks))]
    before = copy.deepcopy(model)
    zo = bz.ZO(
        model, method=method, blocks=blocks, lr=rates, eps=eps, distribution=distribution, seed=5, weight_decay=0.01
    )
    result = zo.step(batch)
    assert result.seed == step_seed(5, 0) and result.forwards == len(result.losses)

    naive = Naive(before, blocks.layout, result.seed, distribution, eps, lambda m: m(**batch).loss)
    scalars = naive.scalars(method)
    for found, wanted, lr, block in zip(result.scalars, scalars, rates, result.record.blocks, strict=True):
        assert list(found) == list(wanted)
        # losses of some 5 are equal to about 1e-6, and are divided by eps
        torch.testing.assert_close(list(found.values()), list(wanted.values()), rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(list(block.coefficients), [lr * s for s in found.values()], rtol=1e-6, atol=0)
    for name, wanted in expected_weights(before, result.record, blocks.layout, 0.01).items():
        assert torch.equal(model.get_parameter(name), wanted), name


@pytest.mark.parametrize(("method", "cut"), CASES, ids=lambda v: str(v))
def test_evaluated_losses_are_those_of_a_moved_copy(method, cut) -> None:
    """Also with tied embeddings, which the head sees moved as their own block is."""
    model, batch = zoo.make("opt", seed=3), zoo.batch()
    blocks = bz.Blocks(model, cut)
    eps = [0.05] * len(blocks)
    executor = PerturbedExecutor(blocks, bz.Noise(9), eps)
    tree = method.tree(len(blocks))
    found = executor.run(tree, lambda: model(**batch).loss).losses
    naive = Naive(model, blocks.layout, 9, "rademacher", eps, lambda m: m(**batch).loss)
    wanted = []

    def walk(node, path):
        path = path + [(m.block, m.direction, m.sign) for m in node.moves]
        if not node.children:
            wanted.append(naive(*path))
        for child in node.children:
            walk(child, path)

    for root in tree.roots:
        walk(root, [])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


class Quadratic(nn.Module):
    """l = a.w1 + b.w2 + |w1|^2 / 2 + |w2|^2 / 2, in two layers; at w = 0 the gradient is (a, b)."""

    class Part(nn.Module):
        def __init__(self, slope: Tensor) -> None:
            super().__init__()
            self.slope = slope
            self.weight = nn.Parameter(torch.zeros_like(slope))

        def forward(self, total: Tensor) -> Tensor:
            return total + (self.slope * self.weight).sum() + (self.weight**2).sum() / 2

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        slopes = [torch.randn(size, generator=generator, dtype=torch.float32) * scale for scale in (1.0, 2.0)]
        self.layers = nn.Sequential(*(self.Part(s) for s in slopes))

    def forward(self, start: Tensor) -> Tensor:
        return self.layers(start)


TABLE = [
    (bz.SPSA(2), (1 / 2, 1 / 2), (1 / 2, 1 / 2)),
    (bz.SPZO(1, 2, "coupled"), (1.0, 1 / 2), (1 / 2, 1 / 2)),
    (bz.SPZO(2, 2, "coupled"), (1 / 2, 1 / 4), (1 / 4, 1 / 4)),
    (bz.SPZO(1, 2, "crossed"), (1.0, 0.0), (1 / 2, 0.0)),
    (bz.SPZO(1, 2, "decoupled"), (1.0, 0.0), (1 / 2, 0.0)),
]


@pytest.mark.parametrize(
    ("method", "block1", "block2", "distribution"),
    [
        # one distribution each: it decides over d + 1 or d - 1 alone
        pytest.param(*row, distribution, marks=[] if (number + k) % 2 else pytest.mark.slow)
        for number, row in enumerate(TABLE)
        for k, distribution in enumerate(("gaussian", "rademacher"))
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("draws", "tolerance"), [(600, 0.2), pytest.param(2400, 0.1, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_unbiased_and_variance_of_the_table(
    method, block1, block2, distribution: str, draws: int, tolerance: float
) -> None:
    """spzo.md: squared error (d+1) own /n + d other /m for Gaussian noise, d-1 for d+1 with Rademacher."""
    model = Quadratic()
    blocks = bz.Blocks(model.layers, [1])
    one = 1 if distribution == "gaussian" else -1
    slopes = [part.slope.double() for part in model.layers]
    energy = [float((s**2).sum()) for s in slopes]
    size = len(slopes[0])
    names = list(blocks.layout)
    error, mean = [0.0, 0.0], [torch.zeros(size, dtype=torch.float64) for _ in range(2)]
    tree, eps, reuse = method.tree(2), [0.5, 0.5], None
    for seed in range(draws):
        noise = bz.Noise(seed * 7919 + 1, distribution)
        executor = PerturbedExecutor(blocks, noise, eps, reuse=reuse)
        # what is known of the loss holds for all draws
        reuse = executor.reuse
        losses = executor.run(tree, lambda: model(torch.zeros(()))).losses
        for block, scalars in enumerate(method.scalars(losses, eps)):
            z = torch.stack([noise.sample(names[block], size, k).double() for k in scalars])
            estimate = torch.tensor(list(scalars.values()), dtype=torch.float64) @ z
            error[block] += float(((estimate - slopes[block]) ** 2).sum()) / draws
            mean[block] += estimate / draws
    for block, (own, other) in enumerate((block1, block2)):
        wanted = (size + one) * own * energy[block] + size * other * energy[1 - block]
        assert error[block] == pytest.approx(wanted, rel=tolerance)
        standard_error = math.sqrt(wanted / draws)
        assert float((mean[block] - slopes[block]).norm()) < 4 * standard_error


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any), st.sampled_from(["one", "coupled", "crossed"]))
@settings(deadline=None, max_examples=80)
def test_trees_of_any_depth_count_what_they_run(levels: list[int], kind: str) -> None:
    one_sided, signs = kind == "one", "crossed" if kind == "crossed" else "coupled"
    method = bz.Tree(tuple(levels), one_sided, signs)
    tree = method.tree(len(levels))
    runs, directions = [], []
    for depth, level in enumerate(levels):
        moved = [count for count in levels[: depth + 1] if count]
        sides = 1 if one_sided or not moved else 2 ** len(moved) if signs == "crossed" else 2
        # the unmoved loss shares the blocks before the first that is moved
        runs.append(math.prod(moved) * sides + (one_sided and bool(moved)))
        directions.append(math.prod(moved) if level else 0)
    assert tree.runs == runs and tree.leaves == runs[-1]
    scalars = method.scalars([0.5] * tree.leaves, [1e-3] * len(levels))
    assert [len(s) for s in scalars] == directions and all(v == 0 for block in scalars for v in block.values())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), st.sampled_from(["", "centre", "one_sided"]))
@settings(deadline=None, max_examples=60)
def test_decoupled_counts_what_it_runs(directions: list[int], option: str) -> None:
    """F of the unmoved blocks once, and F of a moved block and all after it for each sign of each direction."""
    tree = bz.Decoupled(tuple(directions), **({option: True} if option else {})).tree(len(directions))
    sides = 1 if option == "one_sided" else 2
    last = max(block for block, count in enumerate(directions) if count)
    chain = [1 if option or block < last else 0 for block in range(len(directions))]
    assert tree.runs == [chain[b] + sides * sum(directions[: b + 1]) for b in range(len(directions))]
    assert tree.leaves == sides * sum(directions) + bool(option)


def test_spzo_flops_against_spsa_with_as_many_late_directions() -> None:
    """K / (alpha + K (1 - alpha)): 1.6 at alpha 1/2 and K 4, 3.1 at 3/4 and 10."""
    for alpha, k, gain in ((0.5, 4, 1.6), (0.75, 10, 3.077)):
        spzo, spsa = bz.SPZO(1, k).tree(2), bz.SPSA(k).tree(2)
        assert spsa.flops([alpha, 1 - alpha]) / spzo.flops([alpha, 1 - alpha]) == pytest.approx(gain, rel=1e-3)


def test_one_sided_spzo_runs_what_the_table_says() -> None:
    """docs/methods.md: one unmoved loss, then half of the evaluations."""
    whole, p, k = 1, 2, 3
    assert bz.SPZO(p, k, one_sided=True).tree(2).runs == [whole + p, whole + p * k]
    assert bz.SPZO(p, k, "decoupled", one_sided=True).tree(2).runs == [whole + p, whole + p * k + p]


@pytest.mark.parametrize(
    ("method", "cut", "passes"),
    [(bz.MeZO(), [], 3), (bz.SPSA(4), [], 9), (bz.OneSided(4), [], 5), (bz.FZOO(8), [], 9)],
    ids=str,
)
def test_in_place_passes(method, cut, passes: int) -> None:
    """2P + 1 two-sided, P + 1 one-sided: the last restore goes into the update."""
    model, batch = zoo.make("llama"), zoo.batch()
    blocks = bz.Blocks(model, cut)
    assert bz.cost(blocks, method, batch=batch).in_place_weight_passes == passes


@pytest.mark.parametrize(("method", "cut"), CASES, ids=lambda v: str(v))
def test_in_place_agrees_with_perturbed(method, cut) -> None:
    batch = zoo.batch()
    found = {}
    for evaluate in ("perturbed", "in_place"):
        model = zoo.make("gpt2")
        zo = bz.ZO(
            model, method=method, blocks=bz.Blocks(model, cut), lr=1e-2, eps=1e-2, weight_decay=0.1, evaluate=evaluate
        )
        results = [zo.step(batch) for _ in range(2)]
        found[evaluate] = ([x for r in results for x in r.losses], model.state_dict())
    torch.testing.assert_close(found["perturbed"][0], found["in_place"][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["perturbed"][1], found["in_place"][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: bz.SPSA(0), "positive integer"),
        (lambda: bz.SPZO(1, 2, "both"), "coupled, crossed or decoupled"),
        (lambda: bz.SPZO(1, 2, "crossed", one_sided=True), "use coupled or decoupled"),
        (lambda: bz.SPZO().tree(3), "expected one boundary"),
        (lambda: bz.FZOO(1), "two or more"),
        (lambda: bz.Tree(()), "0 or more and not all"),
        (lambda: bz.Tree((1, 2)).tree(3), "one level a block"),
        (lambda: bz.Tree((0, 0)), "not all"),
        (lambda: bz.Tree((1, 1), signs="both"), "coupled or crossed"),
        (lambda: bz.Tree((1, 1), one_sided=True, signs="crossed"), "only the sign"),
        (lambda: bz.Decoupled((1, -1)), "0 or more"),
        (lambda: bz.Decoupled((1, 2)).tree(3), "one number a block"),
    ],
)
def test_bad_settings(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_every_method_has_a_name_to_be_chosen_by(cls: type[Method]) -> None:
    settings = {"levels": (1, 2)} if cls is bz.Tree else {"directions": (1, 2)} if cls is bz.Decoupled else {}
    expected = cls(**settings)
    for name in {cls.__name__, cls.option} - {""}:
        for form in (name, name.upper(), name.replace("-", "_")):
            assert named(form, **settings) == expected
    model = zoo.make("gpt2")
    if settings:
        with pytest.raises(ValueError, match=f"needs {next(iter(settings))}"):
            bz.ZO(model, method=cls.__name__)
    else:
        assert bz.ZO(model, method=cls.__name__).method == expected
    with pytest.raises(ValueError, match="has no setting other"):
        named(cls.__name__, other=1)


def test_a_name_of_no_method_is_told() -> None:
    with pytest.raises(ValueError, match="'adam'; expected \"auto\", one of .*one-sided"):
        bz.ZO(zoo.make("gpt2"), method="adam")
