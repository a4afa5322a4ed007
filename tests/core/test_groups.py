"""Evaluations in groups give what they give alone, and run alone where they cannot be batched."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import blockzo as bz
from blockzo.methods.tree import BlockMove, EvaluationTree, Node
from blockzo.ops.params import targets
from blockzo.optim.executor import PerturbedExecutor
from blockzo.perturb import Index, Move, grouping, groups, parameters
from blockzo.perturb.grouping import Known, Size
from blockzo.perturb.groups import perturbed_losses, run_groups
from blockzo.perturb.losses import evaluation_mode
from tests.core import zoo

NOISE = bz.Noise(5, "gaussian")
LOSS_TOLERANCE = 1e-5
"""Relative, of float32 losses; scalars then agree within LOSS_TOLERANCE * loss / eps."""


@pytest.fixture(params=[128, 1 << 14], ids=["large", "small"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", request.param)


@pytest.fixture(autouse=True)
def strict() -> Any:
    """A model that has to run alone is a failure, where no test asks for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="this model cannot be evaluated in groups")
        yield


def alone(model: nn.Module, direction: int, scale: float, loss: Any) -> float:
    other = copy.deepcopy(model).eval()
    bz.perturb_(other, NOISE, scale, direction)
    with torch.no_grad():
        return float(loss(other))


# Bloom's activation is an autograd.Function without a vmap rule
BATCHED = sorted(set(zoo.HUGGING_FACE) - {"bloom"})


@pytest.mark.parametrize("name", BATCHED)
def test_losses_of_groups_are_those_of_moved_copies(name: str, sizes: None) -> None:
    model, batch = zoo.make(name), zoo.batch()
    directions, scales = [0, 0, 7, 2, 3], [0.02, -0.02, 0.01, 0.0, 0.05]
    expected = [alone(model, d, s, lambda m: m(**batch).loss) for d, s in zip(directions, scales, strict=True)]
    found = perturbed_losses(model, NOISE, directions, scales, lambda: model(**batch).loss, max_group=5)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=LOSS_TOLERANCE, atol=0)
    assert len(set(found.tolist())) == 4 + 1


@pytest.mark.parametrize("name", BATCHED)
def test_losses_of_16_bit_groups(name: str, sizes: None) -> None:
    """Near the losses of the same weights in float32: groups round no more than an evaluation alone does."""
    model, batch = zoo.make(name).to(torch.bfloat16), zoo.batch()
    exact = copy.deepcopy(model).float()
    directions, scales = [0, 1, 1], [0.1, 0.1, -0.1]
    expected = [alone(exact, d, s, lambda m: m(**batch).loss) for d, s in zip(directions, scales, strict=True)]
    for size in (1, 3):
        found = perturbed_losses(model, NOISE, directions, scales, lambda: model(**batch).loss, max_group=size)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0.02, atol=0)


TREES = [
    (bz.MeZO(), []),
    (bz.SPSA(3), [2]),
    (bz.OneSided(4), []),
    (bz.SPZO(2, 3, "coupled"), [2]),
    (bz.SPZO(2, 2, "crossed"), [1]),
    (bz.SPZO(1, 3, "decoupled"), [2]),
    (bz.Tree((2, 1, 3)), [1, 3]),
    (bz.Tree((1, 2), one_sided=True), ["head"]),
]


@pytest.mark.parametrize(
    ("method", "cut", "name"),
    [
        # each model with every second tree
        pytest.param(*tree, name, marks=[] if (number + k) % 2 else pytest.mark.slow)
        for number, tree in enumerate(TREES)
        for k, name in enumerate(("llama", "opt"))
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [2, 100, "auto"])
def test_trees_in_groups(method: Any, cut: list[Any], name: str, size: int | str, sizes: None) -> None:
    model, batch = zoo.make(name), zoo.batch()
    blocks = bz.Blocks(model, cut)
    eps = [1e-2 / (b + 1) for b in range(len(blocks))]
    tree = method.tree(len(blocks))
    results = [
        PerturbedExecutor(blocks, NOISE, eps, max_group=s).run(tree, lambda: model(**batch).loss) for s in (1, size)
    ]
    single, group = results
    torch.testing.assert_close(torch.tensor(group.losses), torch.tensor(single.losses), rtol=LOSS_TOLERANCE, atol=0)
    assert group.flops == single.flops
    assert group.used == single.used
    bound = LOSS_TOLERANCE * max(single.losses) / min(eps)
    scalars = [s for block in method.scalars(single.losses, eps) for s in block.values()]
    assert max(map(abs, scalars)) > 10 * bound  # the bound tells scalars apart
    for one, other in zip(method.scalars(single.losses, eps), method.scalars(group.losses, eps), strict=True):
        assert one.keys() == other.keys()
        for direction in one:
            assert other[direction] == pytest.approx(one[direction], rel=0, abs=bound)


def test_kept_activations_are_those_stated() -> None:
    model, batch = zoo.make("opt"), zoo.batch()
    blocks = bz.Blocks(model, [1, 3])
    method = bz.Tree((2, 2, 2))
    stated = bz.cost(blocks, method, batch=batch).activation_bytes
    for size in (1, 2, 4):
        executor = PerturbedExecutor(blocks, NOISE, [0.01] * 3, size)
        # one set a level and group
        assert executor.run(method.tree(3), lambda: model(**batch).loss).kept_bytes == size * stated > 0


def test_blocks_have_their_own_noise() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    blocks = bz.Blocks(model, [2])
    noises = [bz.Noise(5, "gaussian"), bz.Noise(5, "rademacher")]
    tree = bz.SPZO(1, 2).tree(2)
    for size in (1, 8):
        found = PerturbedExecutor(blocks, noises, [0.1, 0.1], max_group=size).run(tree, lambda: model(**batch).loss)
        other = copy.deepcopy(model)
        for block, noise in enumerate(noises):
            bz.perturb_({n: p for n, p in other.named_parameters() if blocks.layout.get(n) == block}, noise, 0.1, 0)
        with torch.no_grad():
            assert found.losses[0] == pytest.approx(float(other(**batch).loss), rel=LOSS_TOLERANCE)
    with pytest.raises(ValueError, match="noise has 1 entries for 2 blocks"):
        PerturbedExecutor(blocks, noises[:1], [0.1, 0.1])


def test_layers_that_work_in_place_are_batched() -> None:
    model = zoo.TupleModel()
    ids = torch.randint(0, 20, (2, 6))
    blocks = bz.Blocks(model, [2], example={"ids": ids})
    for variant in ("coupled", "decoupled"):
        tree = bz.SPZO(1, 3, variant).tree(2)
        losses = [
            PerturbedExecutor(blocks, NOISE, [0.01] * 2, max_group=s)
            .run(tree, lambda: zoo.tuple_loss(model, ids))
            .losses
            for s in (1, 8)
        ]
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=LOSS_TOLERANCE, atol=0)


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out.sum() if float(out.sum()) > 0 else out.sum() * 2


class Remembering(nn.Linear):
    """Keeps a state between calls, so its evaluations depend on their order: a batch of them cannot be trusted."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x).sum() * self.calls


def test_what_cannot_be_batched_runs_alone_and_says_so_once() -> None:
    torch.manual_seed(0)
    model, x = Branching(4, 4), torch.randn(3, 4)
    with pytest.warns(UserWarning, match="cannot be evaluated in groups .*one after the other"):
        found = perturbed_losses(model, NOISE, [0, 1, 2], [0.5] * 3, lambda: model(x), max_group=3)
    expected = [alone(model, d, 0.5, lambda m: m(x)) for d in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected))
    again = perturbed_losses(
        model, NOISE, [0, 1, 2], [0.5] * 3, lambda: model(x), max_group=3
    )  # a warning would be an error
    assert torch.equal(again, found)


def test_a_group_that_differs_from_its_members_is_found() -> None:
    model, x = Remembering(4, 4), torch.randn(3, 4)
    with pytest.warns(UserWarning, match="differs by"):
        perturbed_losses(model, NOISE, [0, 1], [0.5, 0.5], lambda: model(x), max_group=2)
    assert Known.of(model).alone


def test_bloom_runs_alone() -> None:
    model, batch = zoo.make("bloom"), zoo.batch()
    with pytest.warns(UserWarning, match="autograd.Function"):
        found = perturbed_losses(model, NOISE, [0, 1], [0.02, 0.02], lambda: model(**batch).loss, max_group=2)
    expected = [alone(model, d, 0.02, lambda m: m(**batch).loss) for d in (0, 1)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=LOSS_TOLERANCE, atol=0)


def test_an_error_of_the_model_is_the_models() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="shapes|must match|mat1"):
        perturbed_losses(
            model, NOISE, [0, 1], [0.1, 0.1], lambda: (model.weight @ torch.randn(5, 5)).sum(), max_group=2
        )
    assert not Known.of(model).alone


@pytest.mark.parametrize("size", [1, 3])
def test_a_loss_of_several_elements_is_refused(size: int) -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"shape \(2, 4\)"):
        perturbed_losses(model, NOISE, [0, 1, 2], [0.1] * 3, lambda: model(torch.ones(2, 4)), max_group=size)


def test_a_loss_that_does_not_depend_on_the_weights() -> None:
    model = nn.Linear(4, 4)
    assert perturbed_losses(model, NOISE, [0, 1], [0.1] * 2, lambda: torch.ones(()), max_group=2).tolist() == [1, 1]


def test_groups_of_unmoved_nodes() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    blocks = bz.Blocks(model, [2])
    moved = Node(0, 1, (), (Node(1, 2, (BlockMove(1, 0, 1),)), Node(1, 2)))
    tree = EvaluationTree(2, (Node(0, 1, (), (Node(1, 2), Node(1, 2))), moved))
    results = [
        PerturbedExecutor(blocks, NOISE, [0.1] * 2, size).run(tree, lambda: model(**batch).loss) for size in (1, 4)
    ]
    assert results[0].flops == results[1].flops
    torch.testing.assert_close(*(torch.tensor(r.losses) for r in results), rtol=LOSS_TOLERANCE, atol=0)
    assert results[0].losses[0] == results[0].losses[3] != results[0].losses[2]


def test_bad_arguments() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="max_group is 0"):
        perturbed_losses(model, NOISE, [0], [0.1], lambda: model(torch.ones(1, 4)).sum(), max_group=0)
    with pytest.raises(ValueError, match="2 entries, scales 1"):
        perturbed_losses(model, NOISE, [0, 1], [0.1], lambda: model(torch.ones(1, 4)).sum())


class Sizes:
    """What `run` was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str = "blockzo.perturb.groups") -> None:
        self.seen: list[int] = []
        plain = groups.run_groups

        def noted(forward: Any, kept: Any, index: Any, moves: Any, count: int, *rest: Any) -> Any:
            self.seen.append(count)
            return plain(forward, kept, index, moves, count, *rest)

        monkeypatch.setattr(f"{module}.run_groups", noted)


def losses_of(model: nn.Module, rows: int, count: int = 6) -> Tensor:
    x = torch.linspace(-1, 1, rows * 4).view(rows, 4)
    return perturbed_losses(model, NOISE, range(count), [0.1] * count, lambda: model(x).sum())


def test_auto_is_one_with_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, model = Sizes(monkeypatch), nn.Linear(4, 4)
    few = losses_of(model, 8)
    assert sizes.seen == [1, 6, 1]  # one to measure, the group, one to compare it with
    sizes.seen.clear()
    losses_of(model, grouping.AUTO_ROWS + 1)
    # the group stops at the first layer; two, once, show that this changes nothing for the next
    assert sizes.seen == [6] + [1] * 2 + [1] * 6
    sizes.seen.clear()
    assert torch.equal(losses_of(model, 8), few)  # whatever ran before
    assert 6 in sizes.seen


class Pooled(nn.Module):
    """Many tokens in the first layer, one row a sequence in the second; the lookup is in no layer, so it always runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Flatten(), nn.Linear(80, 2))])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x.square().sum()


def test_a_pooled_head_is_batched_though_the_model_has_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = Pooled(), torch.arange(160).view(8, 20) % 30
    blocks, tree = bz.Blocks(model, [1], layers="layers"), bz.SPZO(1, 4, "decoupled").tree(2)
    sizes = Sizes(monkeypatch, "blockzo.optim.executor")
    found = []
    for limit in ("auto", 1, "auto"):
        sizes.seen.clear()
        found.append(PerturbedExecutor(blocks, NOISE, [0.1] * 2, limit).run(tree, lambda: model(ids)).losses)
    # the first block once, the head's eight at once; a pair of the first block runs alone, as the first of it has many rows
    assert sizes.seen[-4:] == [1, 8, 1, 1]
    assert torch.allclose(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-5) and found[0] == found[2]


def test_auto_follows_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, model = Sizes(monkeypatch), nn.Linear(4, 4)
    losses_of(model, 8)
    free = 2 * 3 * Known.of(model).sizes[None].nbytes
    monkeypatch.setattr(grouping, "free_memory", lambda device: free)
    sizes.seen.clear()
    losses_of(model, 8)
    assert sizes.seen == [3, 3]
    sizes.seen.clear()
    losses_of(model, 16)  # twice the rows: measured again, and half as many fit
    assert sizes.seen[:2] == [3, 1] and set(sizes.seen[2:]) == {1}
    monkeypatch.setattr(grouping, "free_memory", lambda device: 0)
    sizes.seen.clear()
    losses_of(model, 16)
    assert sizes.seen == [1] * 6


def test_auto_keeps_the_memory_of_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "FLOOR", 0)
    sizes, model = Sizes(monkeypatch), nn.Linear(4, 4)
    losses_of(model, 8)
    assert set(sizes.seen) == {1}, "a thirtieth of 80 bytes holds no second evaluation"
    known = Known.of(model)
    known.beside = 2 * known.sizes[None].nbytes
    sizes.seen.clear()
    losses_of(model, 8)
    assert sizes.seen == [3, 1, 3]


def test_examples_apart_may_take_what_their_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "FLOOR", 0)
    sizes, model = Sizes(monkeypatch, "blockzo.optim.executor"), nn.Linear(8, 2)
    zo = bz.ZO(model, lambda m, x: m(x).square().mean(), per_example=True, blocks=bz.Blocks(model, []))
    zo.step(torch.arange(48.0).view(6, 8))
    assert max(sizes.seen) == 6


def test_a_group_that_memory_does_not_hold_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = nn.Linear(4, 4), groups.run_groups
    seen = []

    def small_machine(forward: Any, kept: Any, index: Any, moves: Any, count: int, *rest: Any) -> Any:
        seen.append(count)
        if count > 2:
            raise torch.OutOfMemoryError("no memory")
        return plain(forward, kept, index, moves, count, *rest)

    monkeypatch.setattr(groups, "run_groups", small_machine)
    losses_of(model, 8, 4)
    assert seen == [1, 4, 1, 1, 2, 1, 2]


def test_free_memory_is_that_of_this_machine() -> None:
    assert 1 << 20 < grouping.free_memory(torch.device("cpu")) < 1 << 50


class Live(TorchFunctionMode):
    """Peak bytes of the tensors that are alive, by their storages."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.held:
                    self.held.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def free(self, key: int, size: int) -> None:
        self.held.discard(key)
        self.now -= size


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "bert", "gemma2"])
def test_the_estimate_covers_what_a_forward_holds(name: str) -> None:
    model, batch = zoo.make(name), zoo.batch(4, 32)
    model.requires_grad_(False)
    gc.collect()
    with evaluation_mode(model), Live() as live:
        model(**batch)
    size = Size()
    with evaluation_mode(model):
        moves = {0: Move(NOISE, (0,), (0.1,))}
        _, mode = run_groups(lambda *_: model(**batch).loss, None, Index({0: targets(model)}), moves, 1, measure=True)
    size.learn(mode)
    assert live.peak <= size.nbytes <= 12 * live.peak
