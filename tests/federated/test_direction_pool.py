"""A finite pool of directions: bits for everyone, a bounded catch-up, and weights that are the base less the sums."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import blockzo as bz
from blockzo.federated.client.client import Client
from blockzo.federated.protocol.addresses import directions_of_steps, step_directions
from blockzo.federated.protocol.direction_pool import DirectionPool
from blockzo.federated.protocol.seeds import pool_numbers, round_seed
from tests.federated.problem import RUN, Federation, network, settings, worker

POOL = {"pool": 8, "rebase": 5, "rounds": 33}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everyone_holds_the_same_bits(dtype: torch.dtype, own: bool, tmp_path: Path) -> None:
    chance = random.Random(1)
    run = settings(**POOL, local_steps=2, own_directions=own)
    federation = Federation(tmp_path, chosen=run, dtype=dtype)
    while not federation.server.finished:
        here = [name for name in federation.clients if chance.random() < 0.6]
        if chance.random() < 0.2:
            federation.restart_server()
            federation.restart_client(chance.choice(sorted(federation.clients)))
        federation.transport.round(here or None)
    assert len(federation.catch_up()) == 1
    assert federation.server.refusals.total() == 0


def test_after_a_rebase_the_weights_are_the_base_less_the_sums(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(pool=8, rebase=5, rounds=10))
    federation.run()
    noise = bz.Noise(round_seed(bytes.fromhex(RUN), 2**32 - 1))
    layout = federation.server.journal.layout
    moved = {n: p.detach().double().clone() for n, p in network().named_parameters()}
    for record in federation.server.journal.records():
        for n, p in moved.items():
            block = record.blocks[layout[n]]
            for k, c in zip(block.directions, block.coefficients, strict=True):
                assert k < 8
                p -= c * noise.sample(n, p.shape, k).double()
    for n, p in federation.replica.blocks.model.named_parameters():  # type: ignore[union-attr]
        # one rounding of the weights, and those of sums of at most eight terms
        torch.testing.assert_close(p.double(), moved[n], rtol=3e-7, atol=3e-7)


def test_a_newcomer_loads_the_sums_and_not_the_rounds(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(pool=8, rebase=50, rounds=520))
    while not federation.server.finished:
        federation.transport.round(["c0"])
    federation.clients["new"] = federation.transport.clients["new"] = Client(worker(9), tmp_path / "new.bz")
    federation.transport.join(["new"])
    digests = federation.catch_up()
    assert len(digests) == 1
    # 20 rounds after the last rebase, and 8 directions in each of two blocks; all rounds would be 37 bytes each
    assert federation.transport.down["new"] < 20 * 40 + 16 * 16 + 1500 < 520 * 37
    federation.clients["new"].close()
    federation.clients["new"] = federation.transport.clients["new"] = Client(worker(9), tmp_path / "new.bz")
    federation.transport.join(["new"])
    assert federation.catch_up() == digests


def test_a_client_that_diverged_long_after_the_first_rebase_takes_part_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(pool=8, rebase=5, rounds=60))
    for _ in range(41):
        federation.transport.round()
    broken = federation.clients["c1"].worker
    with torch.no_grad():
        next(broken.model.parameters()).view(-1)[0] += 1.0  # type: ignore[attr-defined]
    broken.weights._digest = None  # type: ignore[attr-defined]
    federation.transport.round()
    assert "c1" in federation.transport.round().participants
    federation.run()
    assert federation.server.refusals.total() == 1
    assert len(federation.catch_up()) == 1


def test_a_pool_draws_different_directions_in_every_round() -> None:
    run = settings(pool=50, local_steps=2)
    found = [directions_of_steps(run, number) for number in range(200)]
    assert len({str(entry) for entry in found}) == 200
    assert {k for entry in found for k in entry[1]} == set(range(50))
    assert all(len(set(block)) == len(block) for entry in found for block in entry)
    steps = [step_directions(run, 3, 0, step) for step in range(2)]
    assert found[3] == [a + b for a, b in zip(*steps, strict=True)]
    with pytest.raises(ValueError, match="larger pool"):
        pool_numbers(bytes(16), 0, 0, 0, 9, 8)
    with pytest.raises(ValueError, match="pool is 2"):
        settings(pool=2)
    with pytest.raises(ValueError, match="no decay"):
        settings(pool=20, weight_decay=0.1)
    with pytest.raises(ValueError, match="stochastic_rounding"):
        settings(pool=20, stochastic_rounding=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"round": 5},
        {"round": 3, "pool": ["", ""]},
        {"round": 5, "pool": ["", "", ""]},
        {"round": 5, "pool": ["", "AAAA"]},
        {"round": 5, "pool": ["", "*"]},
        {"round": "x", "pool": ["", ""]},
    ],
)
def test_sums_of_another_run_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DirectionPool.restored(settings(**POOL), wrong)
