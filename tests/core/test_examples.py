"""A direction an example: losses and updates against copies with materialised noise, the squared error, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.methods import METHODS, Method
from blockzo.methods.tree import BlockMove
from blockzo.noise import Noise
from blockzo.optim.examples import numbers, rows_of, scalars_of
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.micro_batches import rows_in
from blockzo.optim.step import step_seed
from blockzo.perturb.grouping import Known
from tests.core import zoo
from tests.zoo.harness import Reference

CUTS: dict[int, list[int]] = {1: [], 2: [2], 3: [1, 3]}
CASES = [(blocks, method) for cls in METHODS.values() for blocks in CUTS for method in cls.examples(blocks)]


def labelled() -> dict[str, Tensor]:
    """Three rows of different numbers of label tokens, two of them padded."""
    batch = {name: value.clone() for name, value in zoo.batch().items()}
    labels = batch["input_ids"].clone()
    labels[0, 5:], labels[1, 8:] = -100, -100
    return {**batch, "labels": labels}


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


@pytest.mark.parametrize(("blocks", "method"), CASES, ids=lambda value: str(value))
def test_each_example_moves_along_its_own_directions(blocks: int, method: Method) -> None:
    model, batch = zoo.make("llama"), labelled()
    cut = bz.Blocks(model, CUTS[blocks])
    eps = [1e-2 * (1 + b) for b in range(blocks)]
    zo = bz.ZO(model, own_loss, method, cut, lr=1e-2, eps=eps, seed=3, per_example=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [rows_of(batch, [row], 3) for row in range(3)]
    noise = Noise(step_seed(3, 0))
    losses = []
    for example, row in enumerate(rows):
        reference = Reference(model, cut.layout, noise, eps, own_loss, row)
        moves = [
            [BlockMove(m.block, m.direction * 3 + example, m.sign) for m in path]
            for path in method.tree(blocks).leaf_moves()
        ]
        losses.append([reference(path) for path in moves])
    tokens = [int((row["labels"][:, 1:] != -100).sum()) for row in rows]
    result = zo.step(batch)
    expected = [
        sum(n * own[leaf] for n, own in zip(tokens, losses, strict=True)) / sum(tokens)
        for leaf in range(len(losses[0]))
    ]
    torch.testing.assert_close(torch.tensor(result.losses), torch.tensor(expected), rtol=2e-5, atol=2e-5)
    # from the losses of the copies, the update that this result stands for
    wanted = scalars_of(method, losses, [n / sum(tokens) for n in tokens], eps)
    for found, block in zip(result.scalars, wanted, strict=True):
        assert list(found) == list(block)
        assert list(found.values()) == pytest.approx(list(block.values()), rel=0.02, abs=0.02)
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(before)
    bz.replay_(model, [result.record], cut.layout)
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())


def agrees(family: str, method: Method, blocks: int) -> None:
    """Scalars of one estimate are those of copies with materialised noise; a row without padding and rows with."""
    model, batch = zoo.make(family), {**zoo.batch(), "labels": labelled()["labels"]}
    cut, eps = bz.Blocks(model, CUTS[blocks]), [1e-2] * blocks
    zo = bz.ZO(model, own_loss, method, cut, eps=eps, seed=5, per_example=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if family != "bloom" else "ignore")
        result = zo.estimate(batch)
    # torch.vmap has no rule for Bloom's own activation function
    assert bool(Known.of(zo.blocks).alone) == (family == "bloom")
    noise, tree = Noise(step_seed(5, 0)), method.tree(blocks)
    losses = []
    for example in range(3):
        reference = Reference(model, zo.blocks.layout, noise, eps, own_loss, rows_of(batch, [example], 3))
        every = [[BlockMove(m.block, m.direction * 3 + example, m.sign) for m in path] for path in tree.leaf_moves()]
        losses.append([reference(path) for path in every])
    first = 1 if "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__ else 0
    tokens = [int((row[first:] != -100).sum()) for row in batch["labels"]]
    wanted = scalars_of(method, losses, [n / sum(tokens) for n in tokens], eps)
    for found, block in zip(result.scalars, wanted, strict=True):
        assert list(found.values()) == pytest.approx(list(block.values()), rel=0.02, abs=0.02)


@pytest.mark.parametrize("family", sorted(zoo.HUGGING_FACE))
def test_padded_examples_of_every_family_run_together(family: str) -> None:
    """Models that ask whether a mask is all ones part their examples."""
    agrees(family, bz.SPZO(1, 2), 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(zoo.HUGGING_FACE))
@pytest.mark.parametrize(("blocks", "method"), CASES, ids=lambda value: str(value))
def test_every_method_on_every_family(family: str, blocks: int, method: Method) -> None:
    agrees(family, method, blocks)


class Asking(nn.Module):
    """Branches on what a batch holds, by two ways to the same numbers, and notes which way it goes."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.ask = nn.Linear(4, 1), ask
        self.calls = 0
        self.ways: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.layer(x)
        self.ways.append(bool(self.ask(x)))
        return y * 2 if self.ways[-1] else y + y


@pytest.mark.parametrize(
    ("ask", "calls"),
    [
        (lambda x: (x > 0).all(), (1 + 2 + 1, 3)),  # of two groups of three examples the first parts
        (lambda x: bool(x.amax() > 5), (2, 2)),
        (lambda x: x.flatten()[0].item() > 0, (12, 12)),
    ],
    ids=["two lots", "one answer", "an answer each"],
)
def test_examples_part_where_the_model_asks_of_them(ask: Callable[[Tensor], Any], calls: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = -torch.rand(6, 1, 4)
    x[:2] *= -1
    found = []
    for limit in (6, 1):
        model = Asking(ask)
        torch.nn.init.constant_(model.layer.weight, 0.3)
        torch.nn.init.constant_(model.layer.bias, 0.1)
        zo = bz.ZO(model, lambda m, b: m(b).mean(), bz.OneSided(1), per_example=True, max_group=limit)
        for _ in range(3):
            zo.step(x)  # after three runs the loss is not looked at for a while
        model.calls, model.ways = 0, []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = zo.estimate(x)
        found.append(result.losses)
        if limit == 6:
            assert (model.calls, len(model.ways)) == calls
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("first", [True, False], ids=["first lot", "last lot"])
def test_examples_that_part_and_then_cannot_be_batched_run_alone(first: bool) -> None:
    """As of a mixture of experts that counts its tokens by `scatter_add_`, on rows with padding and without."""

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        y = m(x).squeeze()
        if (x > 0).all():
            y = y * 2
        # torch.vmap cannot write what differs from row to row into what all share
        return y + torch.zeros(2).scatter_add_(0, torch.zeros(4, dtype=torch.long), x[0]).sum()

    found = []
    for limit in (6, 1):
        torch.manual_seed(0)
        x = torch.rand(6, 4) + 0.1
        x[2 if first else 4] *= -1
        zo = bz.ZO(
            nn.Linear(4, 1), lambda m, b: torch.stack([loss(m, row[None]) for row in b]), bz.SPSA(2), per_example=True
        )
        zo.max_group = limit
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(zo.estimate(x).scalars)
    for own, alone in zip(*found, strict=True):
        assert own == pytest.approx(alone, rel=1e-3, abs=1e-4)


def test_a_batch_with_a_list_of_texts_runs_one_example_after_the_other() -> None:
    model, words = nn.Linear(4, 1), {"a": 0, "bb": 1, "ccc": 2}
    batch = {"x": torch.randn(3, 4), "text": list(words)}

    def loss(m: nn.Module, b: Any) -> Tensor:
        return (m(b["x"]).squeeze(1) - torch.tensor([float(words[text]) for text in b["text"]])).square().mean()

    zo = bz.ZO(model, loss, bz.MeZO(), per_example=True)
    with pytest.warns(UserWarning, match="one after the other"):
        result = zo.step(batch)
    assert result.losses[0] > 0


def test_micro_batches_are_the_batch() -> None:
    batch = labelled()
    found = []
    for parts in (batch, [rows_of(batch, [0], 3), rows_of(batch, [1, 2], 3)]):
        zo = bz.ZO(zoo.make("llama"), own_loss, bz.OneSided(2), per_example=True)
        found.append(zo.estimate(parts).record)
    one, two = found
    assert one.blocks[0].directions == two.blocks[0].directions
    assert one.blocks[0].coefficients == pytest.approx(two.blocks[0].coefficients, rel=1e-9)


@pytest.mark.parametrize("shares", ["uneven", pytest.param("equal", marks=pytest.mark.slow)])
def test_the_squared_error_is_that_of_the_examples_own_gradients(shares: str) -> None:
    """(d + 1) sum_b w_b^2 |g_b|^2 for Gaussian noise, within 5%; all that is left out are terms without d."""
    size, examples, draws = 48, 6, 4000
    chance = torch.Generator().manual_seed(5)
    slopes = torch.randn(examples, size, generator=chance, dtype=torch.float64)
    weights = torch.full((examples,), 1 / examples) if shares == "equal" else torch.arange(1, 7) / 21
    weights = weights.double()
    wanted, method, eps = weights @ slopes, bz.SPSA(1), 0.1
    error, mean = 0.0, torch.zeros(size, dtype=torch.float64)
    for seed in range(draws):
        noise = Noise(seed, "gaussian")
        z = torch.stack([noise.sample("w", size, numbers([1], b, examples)[0][0]).double() for b in range(examples)])
        along = (slopes * z).sum(1)
        losses = [[1.0 + eps * float(s), 1.0 - eps * float(s)] for s in along]
        (scalars,) = scalars_of(method, losses, weights.tolist(), [eps])
        estimate = torch.tensor(list(scalars.values()), dtype=torch.float64) @ z
        error += float(((estimate - wanted) ** 2).sum()) / draws
        mean += estimate / draws
    formula = (size + 1) * float((weights**2 * (slopes**2).sum(1)).sum())
    assert error == pytest.approx(formula, rel=0.05)
    assert float((mean - wanted).norm()) < 4 * (formula / draws) ** 0.5


def test_fzoo_divides_by_one_deviation_of_all_examples() -> None:
    losses = [[1.0, 1.1, 0.7], [2.0, 2.4, 2.1]]
    differences = torch.tensor([0.1, -0.3, 0.4, 0.1], dtype=torch.float64)
    (found,) = scalars_of(bz.FZOO(2), losses, [0.5, 0.5], [0.1])
    plain = (differences / (2 * 0.1) / differences.std() / 2).tolist()
    assert [found[0], found[2], found[1], found[3]] == pytest.approx(plain)


def test_a_block_without_directions_in_a_run_whose_noise_is_numbered() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    blocks, tree = bz.Blocks(model, [2]), bz.Decoupled((0, 2)).tree(2)
    executor = PerturbedExecutor(blocks, Noise(1), [1e-2, 1e-2], directions=[(), (5, 9)])
    found = executor.run(tree, lambda: model(**batch).loss).losses
    reference = Reference(model, blocks.layout, Noise(1), [1e-2] * 2, own_loss, batch)
    moves = [[BlockMove(m.block, (5, 9)[m.direction], m.sign) for m in path] for path in tree.leaf_moves()]
    assert found == pytest.approx([reference(path) for path in moves], rel=2e-5)


class Contrast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(self.layer(x) @ x.t(), torch.arange(len(x)))


def test_a_loss_that_couples_examples_is_refused() -> None:
    model = Contrast()
    before = bz.digest(model)
    zo = bz.ZO(model, lambda m, x: m(x), bz.OneSided(2), per_example=True)
    with pytest.raises(ValueError, match="examples must not see each other"):
        zo.step(torch.randn(5, 4))
    assert bz.digest(model) == before


def test_a_number_of_rows_that_is_another_tensors_length_is_found() -> None:
    """Three rows, then four with four class weights: those would be taken apart as rows."""
    model, weights = nn.Linear(4, 4), torch.arange(1.0, 5.0)

    def loss(m: nn.Module, b: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(m(b[0]), b[1], weight=b[2] if len(b[2]) == 4 else None)

    zo = bz.ZO(
        model,
        loss,
        bz.MeZO(),
        per_example=True,
        rows_of=lambda b: float(weights[b[1]].sum()) if len(b[2]) == 4 else 1.0,
    )
    zo.step((torch.randn(3, 4), torch.tensor([0, 1, 2]), weights))
    before = bz.digest(model)
    with pytest.raises(ValueError, match="the mean of its examples' losses"):
        zo.step((torch.randn(4, 4), torch.arange(4), weights))
    assert bz.digest(model) == before


@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_function_may_give_a_loss_an_example(weighted: bool) -> None:
    x, y = torch.randn(5, 4), torch.randn(5)
    rows_of_loss = (lambda batch: float(batch[0][:, 0].abs().sum())) if weighted else None

    def each(m: nn.Module, b: Any) -> Tensor:
        return (m(b[0]).squeeze(1) - b[1]).square()

    def mean(m: nn.Module, b: Any) -> Tensor:
        weights = b[0][:, 0].abs() if weighted else torch.ones(len(b[1]))
        return (each(m, b) * weights).sum() / weights.sum()

    found = []
    for loss in (each, mean):
        torch.manual_seed(2)
        zo = bz.ZO(nn.Linear(4, 1), loss, bz.OneSided(2), per_example=True, rows_of=rows_of_loss)
        found.append(zo.step((x, y)))
    one, two = (result.record.blocks[0].coefficients for result in found)
    assert one == pytest.approx(two, rel=1e-2, abs=1e-6) and len(one) == 10


def test_a_loss_that_fails_on_one_row_is_refused_in_words() -> None:
    def pairs(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m(x[0::2]), m(x[1::2])
        return (a - b).square().mean() if len(a) == len(b) else (a[: len(b)] - b).reshape(1, -1, 1 // len(b)).mean()

    model = nn.Linear(4, 1)
    before = bz.digest(model)
    with pytest.raises(ValueError, match="fails on an example alone.*use per_example=False"):
        bz.ZO(model, pairs, bz.MeZO(), per_example=True).step(torch.randn(6, 4))
    assert bz.digest(model) == before


def test_a_loss_that_is_not_finite_is_said_to_be_so() -> None:
    zo = bz.ZO(nn.Linear(4, 1), lambda m, x: m(x).mean() * float("nan"), bz.MeZO(), per_example=True)
    with pytest.raises(ValueError, match="the loss is nan at unmoved weights"):
        zo.step(torch.randn(6, 4))


def test_what_it_does_not_go_with() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="per_example with"):
        bz.ZO(model, lambda m, x: m(x).mean(), per_example=True, evaluate="in_place")
    zo = bz.ZO(model, lambda m, x: m(x).mean(), max_group=1, per_example=True)
    with pytest.raises(ValueError, match="per_example"):
        bz.GraphedStep(zo, capture=False)
    with pytest.raises(ValueError, match="no tensor with a dimension"):
        rows_in({"n": 3})
    with pytest.raises(ValueError, match="cannot be taken apart"):
        rows_of({"n": 3}, [0], 2)


def test_it_learns_with_fewer_forwards_where_examples_agree() -> None:
    """Linear regression on one row repeated: eight directions a step for the price of one."""
    torch.manual_seed(0)
    x, y = torch.randn(1, 40).expand(8, 40).contiguous(), torch.ones(8, 1)
    ends = []
    for own in (False, True):
        torch.manual_seed(1)
        model = nn.Linear(40, 1)
        zo = bz.ZO(
            model, lambda m, b: ((m(b[0]) - b[1]) ** 2).mean(), bz.MeZO(), lr=2e-4 * (4 if own else 1), per_example=own
        )
        for _ in range(40):
            zo.step((x, y))
        ends.append(float(((model(x) - y) ** 2).mean().detach()))
    assert ends[1] < ends[0]
