"""Privacy where every example has directions of its own: whose scalars are whose, what clipping does, and what is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import blockzo as bz
from blockzo.federated.client.worker import Weights, Worker
from blockzo.federated.privacy import settings as privacy
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.methods.base import Method
from blockzo.optim.examples import numbers
from blockzo.optim.micro_batches import MicroBatches
from tests.federated.private_problem import CENTRAL, LOCAL, private_run
from tests.federated.problem import Federation, network, settings, teacher_labels
from tests.federated.test_private_rounds import row_losses

ROWS = 6


def data(rows: int = ROWS, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(5))
    x[2] *= factor
    return x[:rows], teacher_labels(x[:rows])


def worker_of(batch: Any, rows: int, loss: Any = row_losses) -> Worker:
    return Worker(Weights(bz.Blocks(network(), [1])), lambda number, step: (batch, rows), loss, max_group=1)


def by_row(method: Method, batch: Any, rows: int, clip: float, loss: Any = row_losses) -> list[list[float]]:
    """Of every place in a batch, the scalars that a client sends."""
    run = private_run({**CENTRAL, "unit": "example", "batch": ROWS, "clip": clip}, method=method, per_example=ROWS)
    own = worker_of(batch, rows, loss)
    own.begin(run)
    found = own.estimate(0, 0)
    assert len(found.scalars) == run.scalars and found.counts == ()
    starts = [0, run.numbered[0]]
    return [
        [
            found.scalars[start + k]
            for start, block in zip(starts, numbers(run.directions, row, ROWS), strict=True)
            for k in block
        ]
        for row in range(ROWS)
    ]


@pytest.mark.parametrize("method", [bz.SPZO(1, 2), bz.OneSided(2), bz.SPZO(1, 2, "crossed")], ids=str)
def test_each_place_has_the_scalars_of_its_row_alone(method: Method) -> None:
    def mean(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return row_losses(model, batch).mean()

    # unclipped: those of a run without privacy
    plain = worker_of(data(), ROWS, mean)
    plain.begin(settings(method, per_example=ROWS))
    told = list(plain.estimate(0, 0).scalars)
    run = settings(method, per_example=ROWS)
    own = worker_of(data(), ROWS)
    own.begin(private_run({**CENTRAL, "unit": "example", "batch": ROWS, "clip": 1e4}, method=method, per_example=ROWS))
    assert list(own.estimate(0, 0).scalars) == pytest.approx(told, abs=5e-3) and len(told) == run.scalars
    before = by_row(method, data(), ROWS, 1e-2)
    assert all(0 < math.hypot(*row) <= 1e-2 / ROWS for row in before)

    def changed(after: list[list[float]]) -> list[int]:
        return [row for row in range(ROWS) if before[row] != after[row]]

    # another row, one that fails, one that is not there: nobody else's scalars have another bit
    assert changed(by_row(method, data(factor=1e6), ROWS, 1e-2)) == [2]

    def fragile(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if float(batch[0].abs().max()) > 1e3:
            raise RuntimeError("this row says: secret")
        return row_losses(model, batch)

    failed = by_row(method, data(factor=1e6), ROWS, 1e-2, fragile)
    assert changed(failed) == [2] and not any(failed[2])
    fewer = by_row(method, data(4), 4, 1e-2)
    assert changed(fewer) == [4, 5] and not any(fewer[4] + fewer[5])


@pytest.mark.parametrize("mode", ["central", "local", "central sum"])
def test_how_many_examples_a_client_has_is_not_told(mode: str, tmp_path: Path) -> None:
    """Clients of 8 to 11 rows: replies are of one length, and the record has a place for every example that there could be."""
    values = LOCAL if mode == "local" else CENTRAL
    more: dict[str, Any] = {"secure_sum": "unsigned"} if mode == "central sum" else {}
    if more:
        values = {**values, "survivors": 3}
    run = private_run(values, method=bz.OneSided(2), per_example=12, rounds=3, **more)
    policy = RoundPolicy(clients=4, quorum=3, largest_loss_change=1e6)
    federation = Federation(tmp_path, 4, run, policy)
    sizes = set()

    def deliver(name: str, answer: bytes) -> bytes:
        sizes.add(len(answer) if not more else 0)
        return answer

    while not federation.server.finished:
        result = federation.transport.round(deliver=deliver)
        assert result.record is not None and len(result.participants) == 4
        assert [len(block.directions) for block in result.record.blocks] == list(run.numbered)
        # noise on every place
        assert all(all(block.coefficients) for block in result.record.blocks)
    assert len(sizes) == 1 and not federation.server.refusals
    assert federation.catch_up() == {federation.replica.digest()}  # type: ignore[union-attr]


def test_without_noise_the_central_record_is_the_clipped_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "discrete_gaussian", lambda variance: 0)
    found = []
    for name, run in (
        ("plain", settings(bz.OneSided(2), per_example=12, weighting="equal")),
        ("wide", private_run({**CENTRAL, "clip": 1e4}, method=bz.OneSided(2), per_example=12)),
        ("tight", private_run({**CENTRAL, "clip": 1e-3}, method=bz.OneSided(2), per_example=12)),
    ):
        (tmp_path / name).mkdir()
        record = Federation(tmp_path / name, 4, run).transport.round().record
        assert record is not None
        found.append([dict(zip(b.directions, b.coefficients, strict=True)) for b in record.blocks])
    plain, wide, tight = found
    for one, other in zip(plain, wide, strict=True):
        assert {k: v for k, v in other.items() if k in one} == pytest.approx(one, abs=1e-4)
        assert not any(v for k, v in other.items() if k not in one)
    assert 0 < math.hypot(*(v for block in tight for v in block.values())) <= 0.05 * 1e-3 * (1 + 1e-6)


def test_what_privacy_asks_of_it() -> None:
    def run(**given: Any) -> RunSettings:
        return private_run({**CENTRAL, "unit": "example", "batch": 6}, **given)

    with pytest.raises(ValueError, match="per_example is 8 with unit 'example' and a privacy batch of 6"):
        run(per_example=8)
    with pytest.raises(ValueError, match="another method"):
        run(method=bz.FZOO(2), per_example=6)
    with pytest.raises(ValueError, match="own_directions"):
        run(per_example=6, own_directions=True)
    assert run(per_example=6).scalars == 6 * run().scalars
    own = worker_of(MicroBatches([data()]), ROWS)
    own.begin(run(per_example=6))
    with pytest.raises(ValueError, match="micro-batches"):
        own.estimate(0, 0)
    assert m.reply_bytes(run(per_example=6)) == 4 * run(per_example=6).scalars + 59
