"""Losses in which examples see each other are refused with `per_example`, also where the first batches hide it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import blockzo as bz
from blockzo.optim.separate import Pair, Separate, Taken
from blockzo.perturb.rows import split_of

WIDTH, CLASSES = 8, 3
REFUSED = "examples must not see each other"


def rows(count: int, seed: int = 0, label: int | None = None) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(count, WIDTH, generator=chance)
    return x, torch.randint(0, CLASSES, (count,), generator=chance) if label is None else torch.full((count,), label)


def tokens(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Labels of the first tokens of each row."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), 6, WIDTH, generator=chance)
    labels = torch.randint(0, CLASSES, (len(lengths), 6), generator=chance)
    for row, length in enumerate(lengths):
        labels[row, length:] = -100
    return {"x": x, "labels": labels}


class Net(nn.Module):
    def __init__(self, zero: bool = False, normed: bool = False) -> None:
        super().__init__()
        self.first, self.head, self.normed = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES), normed
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        if self.normed:
            y = (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-3).sqrt()
        out: Tensor = self.head(y)
        return out


def mean(m: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])


def weighted(m: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1], weight=torch.tensor([1.0, 5.0, 0.2]))


def contrast(m: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]) @ b[0][:, :CLASSES].t(), torch.arange(len(b[0])))


def spread_out(m: nn.Module, b: Any) -> Tensor:
    out = m(b[0])
    return F.cross_entropy(out, b[1]) + 0.5 * out.var(0, unbiased=False).sum()


def balanced(m: nn.Module, b: Any) -> Tensor:
    """A small part of the loss, as that which balances experts."""
    shares = torch.softmax(m(b[0]), -1).mean(0)
    return F.cross_entropy(m(b[0]), b[1]) + 1e-3 * CLASSES * shares.square().sum()


def each_token(m: nn.Module, b: Any) -> Tensor:
    found = F.cross_entropy(m(b["x"]).flatten(0, 1), b["labels"].flatten(), reduction="none")
    return found.view(b["labels"].shape)


def by_rows(m: nn.Module, b: Any) -> Tensor:
    """Every row counts as much, where `labels` say that tokens do."""
    return (each_token(m, b).sum(1) / (b["labels"] != -100).sum(1)).mean()


def by_a_count(m: nn.Module, b: Any) -> Tensor:
    return each_token(m, b).sum() / b["count"]


def counted(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "count": (batch["labels"] != -100).sum()}


def with_a_list(m: nn.Module, b: Any) -> Tensor:
    return mean(m, (b["x"], b["y"])) * torch.tensor(b["scales"]).mean()


def listed(count: int) -> dict[str, Any]:
    x, y = rows(count)
    return {"x": x, "y": y, "scales": [1.0, 2.0, 3.0, 10.0]}


@pytest.mark.parametrize(
    ("make", "loss", "batches"),
    [
        (lambda: Net(normed=True), mean, [rows(1), rows(4)]),
        (Net, contrast, [rows(1), rows(4)]),
        (Net, by_a_count, [counted(tokens([6])), counted(tokens([6, 3, 2]))]),
        (Net, weighted, [rows(4, label=1), rows(4)]),
        (Net, by_rows, [tokens([6, 6, 6]), tokens([6, 3, 2])]),
        (Net, with_a_list, [listed(3), listed(3), listed(3), listed(4)]),
        (lambda: Net(zero=True, normed=True), mean, [rows(4)]),
        (lambda: Net(zero=True), spread_out, [rows(4), rows(4)]),
        (Net, balanced, [rows(8)]),
    ],
    ids=[
        "batch statistics after a row",
        "contrast after a row",
        "a count after a row",
        "class weights after one class",
        "means of rows after equal lengths",
        "a list as long as a later batch",
        "statistics behind a head of zeros",
        "a variance that begins at zero",
        "a small part",
    ],
)
def test_examples_that_see_each_other_are_found_where_the_first_batch_hides_it(
    make: Callable[[], nn.Module], loss: Callable[..., Tensor], batches: list[Any]
) -> None:
    torch.manual_seed(0)
    model = make()
    zo = bz.ZO(model, loss, bz.MeZO(), lr=5e-2, eps=1e-2, per_example=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a list runs one after the other
        for batch in batches[:-1]:
            zo.step(batch)
        before = bz.digest(model)
        with pytest.raises(ValueError, match=REFUSED):
            zo.step(batches[-1])
    assert bz.digest(model) == before


def test_it_is_tried_again_at_runs_that_double() -> None:
    separate = Separate(nn.Linear(2, 1))
    taken = Taken(torch.zeros(3, 2), 3, [0, 1, 2], [1 / 3] * 3)
    tried = []
    for run in range(600):
        due = separate.due([taken])
        tried += [run] if due else []
        separate.passed([taken], due)
    assert tried == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def test_batches_of_one_row_do_not_count_as_tries() -> None:
    separate = Separate(nn.Linear(2, 1))
    one, several = Taken(torch.zeros(1, 2), 1, [0], [1.0]), Taken(torch.zeros(3, 2), 3, [0, 1, 2], [1 / 3] * 3)
    for _ in range(3):
        assert not separate.due([one])
        separate.passed([one], [])
    assert separate.due([one, several]) == [several]


def test_losses_that_cancel_are_compared_by_their_size() -> None:
    """As a policy's gradient with centred rewards: their mean has the rounding of its terms."""
    taken = Taken(torch.zeros(2, 2), 2, [0, 1], [0.5, 0.5])
    separate, own = Separate(nn.Linear(2, 1)), [Pair(300.0, 301.0), Pair(-300.0, -302.0)]
    separate.compare(taken, Pair(1e-4, -0.5), own, False)
    with pytest.raises(ValueError, match=REFUSED):
        separate.compare(taken, Pair(1e-2, -0.5), own, False)
    with pytest.raises(ValueError, match="changes by -0.6"):
        separate.compare(taken, Pair(0.0, -0.6), own, False)


def test_rounding_of_autocast_is_let_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.Linear(64, CLASSES))

    def loss(m: nn.Module, b: Any) -> Tensor:
        # what products of another number of rows round otherwise
        with torch.autocast("cpu", torch.bfloat16):
            out = m(b[0] if len(b[0]) == 1 else b[0] * (1 + 2e-3))
        return F.cross_entropy(out.float(), b[1])

    bz.ZO(model, loss, bz.MeZO(), per_example=True).step(rows(8))


@pytest.mark.parametrize("kind", ["array", "tuple", "list"])
def test_what_is_no_tensor_is_taken_apart_too(kind: str) -> None:
    numbers = [0.5, -1.0, 2.0, 0.0]
    targets: Any = {"array": np.array(numbers), "tuple": tuple(map(str, numbers)), "list": [[n] for n in numbers]}[kind]

    def own(m: nn.Module, x: Tensor, target: Any) -> Tensor:
        return (m(x[None])[0, 0] - float(target[0] if kind == "list" else target)).square()

    def loss(m: nn.Module, b: Any) -> Tensor:
        return torch.stack([own(m, x, target) for x, target in zip(b["x"], b["targets"], strict=True)]).mean()

    batch = {"x": rows(4)[0], "targets": targets}
    tensors = {"x": batch["x"], "y": torch.tensor(numbers)}
    found = []
    for fn, given in ((loss, batch), (lambda m, b: (m(b["x"])[:, 0] - b["y"]).square().mean(), tensors)):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(bz.ZO(Net(), fn, bz.SPSA(2), eps=1e-2, per_example=True).estimate(given).scalars[0])
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-3)


def test_a_mapping_stays_of_its_kind() -> None:
    x, y = rows(4)
    batch = defaultdict(list, {"x": x, "y": y})

    def loss(m: nn.Module, b: Any) -> Tensor:
        assert type(b) is defaultdict
        return F.cross_entropy(m(b["x"]), b["y"])

    assert len(bz.ZO(Net(), loss, per_example=True).step(batch).record.blocks[0].coefficients) == 4


def test_batches_that_are_taken_apart_otherwise_have_other_forms() -> None:
    one = {"x": torch.zeros(3, 2), "y": [1, 2, 3, 4]}
    assert split_of(one, 3) == split_of({"x": torch.ones(3, 5), "y": [1, 2, 3, 4]}, 3)
    others: list[Any] = [{"x": torch.zeros(3, 2), "y": [1, 2, 3]}, {"x": torch.zeros(3, 2), "z": [1, 2, 3, 4]}]
    assert all(split_of(other, 3) != split_of(one, 3) for other in others)


def test_a_batch_that_counts_as_one_example_is_said_to() -> None:
    x, y = rows(4)

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b["x"]) + b["shift"], b["y"])

    with pytest.warns(UserWarning, match="one row, so all of it counts as one example"):
        bz.ZO(Net(), loss, per_example=True).step({"shift": torch.zeros(1, CLASSES), "x": x, "y": y})


def test_a_batch_of_another_kind_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"type Rows cannot be taken apart.*expected a tensor"):
        bz.ZO(Net(), lambda m, b: m(b.x).mean(), per_example=True).step(type("Rows", (), {"x": rows(4)[0]})())
