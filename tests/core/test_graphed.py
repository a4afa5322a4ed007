"""`GraphedStep` without capture: the records, results and weights of `ZO.step`, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from tests.core import zoo

STEPS = 4


def pair(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[bz.ZO, bz.ZO]:
    result = []
    for _ in range(2):
        torch.manual_seed(0)
        model = zoo.make(name).to(dtype)
        result.append(bz.ZO(model, lambda m, b: m(**b).loss, max_group=1, seed=2**63 + 5, **settings))
    return result[0], result[1]


def batches() -> list[dict[str, Tensor]]:
    first = zoo.batch()
    return [{k: v.roll(n, 0) if v.dim() > 1 else v for k, v in first.items()} for n in range(STEPS)]


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize(
    ("name", "dtype", "settings"),
    [
        ("llama", torch.float32, {"method": bz.MeZO(), "lr": 1e-2}),
        ("llama", torch.bfloat16, {"method": bz.SPSA(3), "lr": 1e-2, "stochastic_rounding": True, "weight_decay": 0.1}),
        ("bert", torch.float32, {"method": bz.SPSA(2), "lr": lambda step: 1e-2 / (step + 1), "weight_decay": 0.3}),
        ("gpt2", torch.float16, {"method": bz.MeZO(), "lr": 1e-3, "eps": 3e-3}),
    ],
)
def test_equals_step(name: str, dtype: torch.dtype, settings: dict[str, Any], distribution: str) -> None:
    eager, other = pair(name, dtype, distribution=distribution, **settings)
    graphed = bz.GraphedStep(other)
    before = bz.digest(other.model)
    for batch in batches():
        want, found = eager.step(batch), graphed.step(batch)
        assert found == want
        assert bz.digest(other.model) == bz.digest(eager.model)
    assert bz.digest(other.model) != before and other.step_number == STEPS


def test_its_journal_replays(tmp_path: Path) -> None:
    zo, fresh = pair("llama", lr=1e-2)
    path = tmp_path / "run.bzj"
    with bz.Journal.create(path, base_digest=bz.digest(zo.model), layout=zo.blocks.layout) as journal:
        zo.journal = journal
        graphed = bz.GraphedStep(zo)
        for batch in batches():
            graphed.step(batch)
    with bz.Journal.open(path) as journal:
        bz.replay_(fresh.model, journal.records(), journal.layout)
    assert bz.digest(fresh.model) == bz.digest(zo.model)


def test_weights_wait_for_the_journal(tmp_path: Path) -> None:
    """A record that does not reach the disk has moved nothing; one that does gives the weights of a step without a journal."""
    zo, plain = pair("llama", method=bz.SPSA(2), lr=1e-2, weight_decay=0.1)
    with bz.Journal.create(tmp_path / "j", base_digest=bz.digest(zo.model), layout=zo.blocks.layout) as journal:
        zo.journal = journal
        graphed, other = bz.GraphedStep(zo), bz.GraphedStep(plain)
        first, second, *_ = batches()
        assert graphed.step(first) == other.step(first)
        before = bz.digest(zo.model)
        assert before == bz.digest(plain.model)

        class Full(bz.JournalError):
            pass

        def append(record: bz.Record) -> None:
            assert bz.digest(zo.model) == before
            raise Full("no space left")

        good, journal.append = journal.append, append  # type: ignore[method-assign]
        with pytest.raises(Full):
            graphed.step(second)
        assert bz.digest(zo.model) == before and zo.step_number == 1
        journal.append = good  # type: ignore[method-assign]
        assert graphed.step(second) == other.step(second)
        assert bz.digest(zo.model) == bz.digest(plain.model) and len(journal) == 2


class Bursts(nn.Module):
    """A loss that is not finite for a batch of large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-0.0, 0.0, 1e-42, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).exp().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lr", [1e-3, 1e38])
def test_a_step_that_is_not_finite_leaves_the_weights(lr: float, dtype: torch.dtype) -> None:
    zo = bz.ZO(Bursts().to(dtype), lambda m, x: m(x), lr=lr, eps=0.1, max_group=1, stochastic_rounding=True)
    before, graphed = bz.digest(zo.model), bz.GraphedStep(zo)
    with pytest.raises(ValueError, match="the loss is inf" if lr < 1 else "a coefficient is -?inf|the loss is inf"):
        graphed.step(torch.full((4,), 1e3 if lr < 1 else 3.0, dtype=dtype))
    assert bz.digest(zo.model) == before and zo.step_number == 0


def test_numbers_of_the_warm_up_leave_every_bit() -> None:
    """A learning rate of 0, which is what a graph is captured with."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        zo = bz.ZO(Bursts().to(dtype), lambda m, x: m(x), max_group=1, stochastic_rounding=True)
        before, graphed = bz.digest(zo.model), bz.GraphedStep(zo)
        graphed._take(torch.ones(4, dtype=dtype))
        graphed._write(0, 0.0, 1.0)
        assert bool(torch.isfinite(graphed._run()).all())
        assert bz.digest(zo.model) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": bz.FZOO(2)}, r"method is FZOO; expected MeZO\(\) or SPSA"),
        ({"method": "auto"}, "method is Auto"),
        ({"max_group": "auto"}, "expected one block"),
        ({"evaluate": "in_place"}, "expected one block"),
    ],
)
def test_other_optimisers_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bz.GraphedStep(bz.ZO(zoo.make("llama"), **{"max_group": 1, **settings}))


def test_what_does_not_fit_the_first_step_is_refused() -> None:
    zo, _ = pair("llama", lr=1e-2)
    graphed, batch = bz.GraphedStep(zo), zoo.batch()
    graphed.step(batch)
    before = bz.digest(zo.model)
    changes: list[tuple[Callable[[], Any], str]] = [
        (lambda: {k: v[:1] for k, v in batch.items()}, "expected batches of one shape"),
        (lambda: {**batch, "more": 1}, "another structure"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            graphed.step(change())
    for name, value in (("eps", [0.5]), ("moved", "rounded")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zo, name, value)
            with pytest.raises(ValueError, match="changed after the step was made"):
                graphed.step(batch)
    assert bz.digest(zo.model) == before and zo.step_number == 1
    with pytest.raises(ValueError, match="expected a CUDA device"):
        bz.GraphedStep(pair("llama")[0], capture=True)
