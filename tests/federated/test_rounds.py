"""Rounds: every participant holds the same bits, whatever it runs on and however often it was away; the update is along the
directions that were evaluated."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import blockzo as bz
from blockzo import _native
from blockzo.federated.client.client import Client
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.seeds import first_direction, round_seed
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings, run_tag
from blockzo.journal.file import Journal, JournalError
from blockzo.optim import executor
from blockzo.perturb import Move
from tests.federated.private_problem import LOCAL, private_run
from tests.federated.problem import RUN, Federation, loss, network, settings, spoil, worker
from tests.federated.test_planned_rounds import run_of

METHODS = {
    "mezo": bz.MeZO(),
    "spsa": bz.SPSA(3),
    "spzo": bz.SPZO(2, 3),
    "crossed": bz.SPZO(1, 2, "crossed"),
    "decoupled": bz.SPZO(1, 4, "decoupled"),
    "one-sided halves": bz.SPZO(2, 2, "decoupled", one_sided=True),
    "one-sided": bz.OneSided(4),
    "fzoo": bz.FZOO(3),
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize(("name", "rank"), [*((name, None) for name in METHODS), ("spzo", 2), ("one-sided", 1)])
def test_the_update_is_the_mean_of_what_clients_found(
    name: str, rank: int | None, local_steps: int, own: bool, tmp_path: Path
) -> None:
    """Against materialised noise, and each client's gradient estimate by plain finite differences of its own losses."""
    rate = 1e-4 if name == "fzoo" else 0.05
    given = {"rounds": 1, "local_steps": local_steps, "own_directions": own, "lr": (rate, rate / 2), "rank": rank}
    run = settings(METHODS[name], **given)
    federation = Federation(tmp_path, clients=3, chosen=run)
    expected = {n: p.detach().double().clone() for n, p in network().named_parameters()}
    found = [worker(i) for i in range(3)]
    rows = []
    moves = []
    for slot, member in enumerate(found):
        member.begin(run)
        estimate = member.estimate(0, slot if own else 0)
        rows.append(estimate.examples)
        moves.append(displacement(run, slot if own else 0, estimate.scalars))
    for share, move in zip([r / sum(rows) for r in rows], moves, strict=True):
        for n in expected:
            expected[n] -= share * move[n]
    federation.run()
    for n, p in federation.replica.blocks.model.named_parameters():  # type: ignore[union-attr]
        torch.testing.assert_close(p.double(), expected[n], rtol=0, atol=2e-6)
    assert federation.catch_up() == {federation.replica.digest()}  # type: ignore[union-attr]


ENDS = {
    "plain": {},
    "local steps, own directions": {"local_steps": 2, "own_directions": True},
    "pool": {"pool": 24},
    "secure sums": {"secure_sum": True},
}


@pytest.mark.parametrize("ends", ENDS)
def test_who_was_not_asked_in_the_last_round_is_brought_up_to_date(ends: str, tmp_path: Path) -> None:
    """Two of six are asked in a round; one is away from the second on, one has other weights, which nobody has noticed yet."""
    policy = RoundPolicy(clients=2, quorum=2, digest_every=1)
    federation = Federation(tmp_path, 6, settings(rounds=7, **ENDS[ends]), policy)
    spoil(federation.clients["c5"])
    while not federation.server.finished:
        there = [name for name in federation.clients if name != "c4" or not federation.server.number]
        federation.transport.round(there)
    behind = [name for name, client in federation.clients.items() if client.position < 7]
    assert "c4" in behind and len(behind) > 2 and ("c5" in federation.server.diverged or "c5" in behind)
    federation.restart_server()
    federation.server.diverged.add("c5")
    held = federation.catch_up()
    assert len(held) == 1 and {client.position for client in federation.clients.values()} == {7}
    assert set(federation.server.positions.values()) == {7} and not federation.server.diverged
    assert federation.server.bring_up_to_date() == {}


def displacement(run: RunSettings, slot: int, scalars: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """lr * sum of scalar * noise, with the noise made as tensors."""
    noise = bz.Noise(round_seed(bytes.fromhex(RUN), 0), rank=run.rank)
    layout = bz.Blocks(network(), [1]).layout
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in network().named_parameters()}
    at = 0
    for step in range(run.local_steps):
        for block, count in enumerate(run.directions):
            first = first_direction(slot, step, run.local_steps, count)
            for k in range(count):
                for n, p in total.items():
                    if layout[n] == block:
                        p += run.lr[block] * scalars[at] * noise.sample(n, p.shape, first + k).double()
                at += 1
    return total


@pytest.mark.parametrize("given", [{}, {"pool": 64, "rebase": 3}, {"per_example": 24}, {"aggregate": "sign"}], ids=str)
def test_noise_of_a_low_rank_in_rounds(given: dict[str, Any], tmp_path: Path) -> None:
    """Clients that come and go hold one digest, which the journal's records give; a run of full rank is another run."""
    run = settings(bz.SPSA(2), rank=2, **given)
    assert RunSettings.from_dict(run.as_dict()) == run and "rank" not in replace(run, rank=None).as_dict()
    federation = Federation(tmp_path, 3, run)
    federation.run()
    digests = federation.catch_up()
    assert len(digests) == 1
    journal = Journal.open(tmp_path / "server.bz")
    assert {record.rank for record in journal.records()} == {2}
    if not run.pool:
        model = network()
        bz.replay_(model, journal.records(), journal.layout)
        assert {bz.digest(model)} == digests
    with pytest.raises(ValueError, match="rank is 65; expected an integer from 1 to 64"):
        settings(rank=65)


@pytest.mark.parametrize("kind", ["plain", "own directions", "planned", "private rows"])
def test_moves_of_16_bits_are_rounded_as_the_run_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every evaluation of a client; a run with another choice is another run, and says so."""
    run = {
        "plain": settings(moved="rounded", local_steps=2),
        "own directions": settings(moved="rounded", per_example=24),
        "planned": run_of(moved="rounded"),
        "private rows": private_run({**LOCAL, "unit": "example", "batch": 16}, moved="rounded"),
    }[kind]
    made: list[Move] = []
    monkeypatch.setattr(executor, "Move", lambda *told: made.append(Move(*told)) or made[-1])
    member = worker(0, torch.bfloat16)
    if kind == "private rows":
        member.loss_fn = lambda model, batch: F.cross_entropy(
            model(batch[0].bfloat16()).float(), batch[1], reduction="none"
        )
    member.begin(run)
    member.estimate(0, 0)
    assert made and {move.moved for move in made} == {"rounded"}
    usual = replace(run, moved="auto")
    assert RunSettings.from_dict(run.as_dict()) == run and "moved" not in usual.as_dict()
    assert run_tag(run, "b", {"w": 0}) != run_tag(usual, "b", {"w": 0})
    with pytest.raises(ValueError, match="moved is 'bf16'; expected one of auto, float32, rounded"):
        replace(run, moved="bf16")


def test_scalars_are_the_differences_of_losses_along_the_directions() -> None:
    run = settings(bz.SPSA(2), own_directions=True)
    member = worker(1)
    member.begin(run)
    found = member.estimate(4, 3)
    noise = bz.Noise(round_seed(bytes.fromhex(RUN), 4))
    batch, _ = member.batch_of(4, 0)
    for k in range(2):
        values = []
        for sign in (1, -1):
            model = network()
            with torch.no_grad():
                for n, p in model.named_parameters():
                    p += sign * run.eps[member.layout[n]] * noise.sample(n, p.shape, 3 * 2 + k)
                values.append(float(loss(model, batch)))
        # both blocks move along direction k together; the coupled rule gives each the same scalar, over two directions
        expected = (values[0] - values[1]) / (2 * run.eps[0]) / 2
        assert found.scalars[k] == pytest.approx(expected, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("rounds", [70, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropouts_late_replies_and_mixed_machines_end_at_one_digest(
    dtype: torch.dtype, rounds: int, tmp_path: Path
) -> None:
    """20 clients, 30% drop out at random, half of them late by up to 50 rounds; mixed machines."""
    chance = random.Random(5)
    run = settings(rounds=rounds, stochastic_rounding=True, weight_decay=0.01, schedule="cosine", lr=(0.02, 0.02))
    federation = Federation(tmp_path, clients=20, chosen=run, policy=RoundPolicy(quorum=3), dtype=dtype)
    sets = _native.available()
    machines = {n: (sets[i % len(sets)], 1 + i % 2) for i, n in enumerate(federation.clients)}
    threads, chosen = torch.get_num_threads(), _native.chosen()
    late: list[tuple[int, str, bytes]] = []
    away: dict[str, int] = {}
    tick = 0

    def handled(name: str, data: bytes) -> bytes:
        _native.choose(machines[name][0])
        torch.set_num_threads(machines[name][1])
        return original[name](data)

    original = {name: client.handle for name, client in federation.clients.items()}
    for name, client in federation.clients.items():
        client.handle = lambda data, name=name: handled(name, data)  # type: ignore[method-assign]

    def deliver(name: str, answer: bytes) -> bytes | None:
        if chance.random() >= 0.3:
            return answer
        if chance.random() < 0.5:
            late.append((tick + chance.randrange(1, 51), name, answer))
        else:
            away[name] = tick + chance.randrange(1, 10)
        return None

    try:
        while not federation.server.finished:
            tick += 1
            for due, name, answer in [entry for entry in late if entry[0] <= tick]:
                late.remove((due, name, answer))
                federation.server.receive(name, answer)
            here = [name for name in federation.clients if away.get(name, 0) <= tick]
            federation.transport.round(here, deliver=deliver)
        assert federation.server.refusals.total() > rounds // 2
        assert {code for _, code in federation.server.refusals} <= {m.STALE, m.UNWANTED}
        assert federation.catch_up() == {federation.replica.digest()}  # type: ignore[union-attr]
    finally:
        _native.choose(chosen)
        torch.set_num_threads(threads)


def test_a_round_without_a_quorum_is_tried_again_and_late_replies_to_it_count(tmp_path: Path) -> None:
    federation = Federation(tmp_path, clients=6, policy=RoundPolicy(clients=3, quorum=3))
    held: dict[str, bytes] = {}

    def keep(name: str, answer: bytes) -> bytes | None:
        held[name] = answer
        return None

    result = federation.transport.round(deliver=keep)
    assert result.record is None and result.attempt == 0 and federation.server.number == 0
    second = federation.server.open_round(federation.clients, 0.0)
    for name, answer in held.items():
        assert m.kind_of(federation.server.receive(name, answer)) == m.ACCEPTED
    assert set(second) != set(held)
    assert federation.server.close_round().participants == tuple(sorted(held))


def test_the_deadline_closes_a_round(tmp_path: Path) -> None:
    federation = Federation(tmp_path, policy=RoundPolicy(deadline=10.0))
    tasks = federation.server.open_round(federation.clients, 100.0)
    federation.server.receive("c0", federation.clients["c0"].handle(tasks["c0"]))
    assert not federation.server.ready(109.0) and federation.server.ready(110.0)
    assert federation.server.close_round().participants == ("c0",)
    for name in ("c1", "c2", "c3"):
        answer = federation.server.receive(name, federation.clients[name].handle(tasks[name]))
        assert m.decode(answer).code == m.STALE  # type: ignore[union-attr]


def test_server_and_clients_go_on_from_their_journals(tmp_path: Path) -> None:
    plain = Federation(make(tmp_path / "plain"))
    plain.run()
    stopped = Federation(make(tmp_path / "stopped"))
    chance = random.Random(0)
    while not stopped.server.finished:
        if chance.random() < 0.3:
            # asked, answered, and forgotten by a server that is killed before the round closes
            stopped.transport.server.open_round(stopped.clients, 0.0)
            stopped.restart_server()
        if chance.random() < 0.5:
            stopped.restart_client(chance.choice(sorted(stopped.clients)))
        stopped.transport.round()
    assert stopped.catch_up() == plain.catch_up()
    assert (
        Journal.open(tmp_path / "stopped/server.bz").records() == Journal.open(tmp_path / "plain/server.bz").records()
    )


def make(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_journal_rebuilds_the_weights(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    model = network()
    journal = Journal.open(tmp_path / "server.bz")
    bz.replay_(model, journal.records(), journal.layout)
    assert bz.digest(model) == federation.replica.digest()  # type: ignore[union-attr]


def test_snapshots_keep_the_journal_bounded_and_serve_new_clients(tmp_path: Path) -> None:
    bounded = Federation(tmp_path, chosen=settings(rounds=23), policy=RoundPolicy(snapshot_every=5))
    while not bounded.server.finished:
        # one that never returns, one that comes back after long
        here = [n for n in bounded.clients if n != "c3" or not 2 <= bounded.server.number < 20]
        bounded.transport.round(here)
        assert len(bounded.server.journal) <= 10
        if bounded.server.number == 13:
            bounded.restart_server()
    assert bounded.server.journal.start == 15
    assert len(list(tmp_path.glob("server.bz.snapshot-*"))) == len(list(tmp_path.glob("bz1-*"))) == 2
    digests = bounded.catch_up()
    assert len(digests) == 1
    bounded.restart_client("c3")
    bounded.clients["new"] = bounded.transport.clients["new"] = type(bounded.clients["c0"])(
        worker(7), snapshots=tmp_path
    )
    bounded.transport.join(["new"])
    assert bounded.catch_up() == digests


def test_a_client_that_began_at_a_snapshot_starts_again_when_the_servers_is_gone(tmp_path: Path) -> None:
    federation = Federation(make(tmp_path / "run"), chosen=settings(rounds=40), policy=RoundPolicy(snapshot_every=4))
    while not federation.server.finished:
        away = 2 <= federation.server.number < 13
        federation.transport.round([n for n in federation.clients if n != "c3" or not away])
        if federation.server.number == 20:
            assert federation.clients["c3"]._held.journal.start > 0  # type: ignore[union-attr]
    federation.restart_client("c3")
    assert federation.clients["c3"].position > 30
    digests = federation.catch_up()
    assert len(digests) == 1
    federation.clients["c3"].close()
    (tmp_path / "run" / "c3.bz.base.safetensors").unlink()
    federation.restart_client("c3")
    assert federation.clients["c3"].position < 40
    assert federation.catch_up() == digests


def test_what_cannot_be_loaded_is_moved_aside_not_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(make(tmp_path / "run"), chosen=settings(rounds=40), policy=RoundPolicy(snapshot_every=4))
    while not federation.server.finished:
        away = 2 <= federation.server.number < 13
        federation.transport.round([n for n in federation.clients if n != "c3" or not away])
    digests = federation.catch_up()
    held = federation.clients["c3"].position
    federation.clients["c3"].close()
    journal, base = tmp_path / "run" / "c3.bz", tmp_path / "run" / "c3.bz.base.safetensors"
    records, weights = journal.read_bytes(), base.read_bytes()
    base.write_bytes(weights[:-7])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(PermissionError("read-only")))
        with pytest.raises(JournalError, match="cannot be moved aside .read-only.; put these weights back"):
            federation.restart_client("c3")
    assert journal.read_bytes() == records and base.read_bytes() == weights[:-7]
    federation.restart_client("c3")
    assert federation.catch_up() == digests
    assert "it is kept as" in caplog.text and "c3.bz.kept-1" in caplog.text
    kept = tmp_path / "run" / "c3.bz.kept-1"
    assert kept.read_bytes() == records
    damaged = kept.with_name(kept.name + ".base.safetensors")
    assert damaged.read_bytes() == weights[:-7]
    # the second time under another name
    federation.clients["c3"].close()
    base.unlink()
    again = journal.read_bytes()
    federation.restart_client("c3")
    assert (tmp_path / "run" / "c3.bz.kept-2").read_bytes() == again and kept.read_bytes() == records
    federation.clients["c3"].close()
    # with its weights mended the journal serves as it did
    damaged.write_bytes(weights)
    mended = Client(worker(3), kept)
    assert mended.position == held and {mended.worker.digest()} == set(digests)
    mended.close()


def test_a_folder_that_was_moved_still_serves(tmp_path: Path) -> None:
    federation = Federation(make(tmp_path / "here"), chosen=settings(rounds=20), policy=RoundPolicy(snapshot_every=4))
    for _ in range(14):
        federation.transport.round()
    (tmp_path / "here").rename(tmp_path / "there")
    federation.folder = tmp_path / "there"
    federation.restart_server()
    federation.run()
    assert len(federation.catch_up()) == 1


def test_snapshots_of_an_earlier_run_are_not_taken_for_this_one(tmp_path: Path) -> None:
    federation = Federation(make(tmp_path / "run"), chosen=settings(rounds=10), policy=RoundPolicy(snapshot_every=4))
    federation.run()
    for path in (tmp_path / "run").glob("*.bz"):
        path.unlink()
    with pytest.raises(JournalError, match="belongs to an earlier run"):
        Federation(tmp_path / "run")


def test_a_disk_that_is_full_for_a_snapshot_loses_no_round(tmp_path: Path) -> None:
    federation = Federation(tmp_path, policy=RoundPolicy(snapshot_every=3))
    save = federation.replica.save  # type: ignore[union-attr]

    def full(path: Path) -> None:
        raise OSError("no space left on device")

    federation.replica.save = full  # type: ignore[union-attr, method-assign]
    for number in range(4):
        assert federation.transport.round().number == number
    federation.replica.save = save  # type: ignore[union-attr, method-assign]
    federation.run()
    assert federation.server.journal.start > 0
    assert len(federation.catch_up()) == 1


def test_a_snapshot_run_has_the_bits_of_one_without(tmp_path: Path) -> None:
    digests = set()
    for name, policy in (("plain", RoundPolicy()), ("cut", RoundPolicy(snapshot_every=3))):
        federation = Federation(make(tmp_path / name), policy=policy)
        federation.run()
        digests |= federation.catch_up()
    assert len(digests) == 1


def test_long_journals_come_in_pieces(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(rounds=60), policy=RoundPolicy(most_bytes=1024))
    here = ["c0", "c1", "c2"]
    while not federation.server.finished:
        federation.transport.round(here)
    before = federation.transport.down["c3"]
    assert len(federation.catch_up()) == 1
    assert federation.transport.down["c3"] - before > 2 * 1024


@pytest.mark.parametrize("aggregate", ["median", "trimmed-mean", "sign"])
def test_other_aggregates_train_too(aggregate: str, tmp_path: Path) -> None:
    rate = 0.005 if aggregate == "sign" else 0.05
    run = settings(rounds=60, aggregate=aggregate, lr=(rate, rate))
    federation = Federation(tmp_path, chosen=run)
    federation.transport.scores(["c0"])
    before = federation.server.scores["c0"].loss
    federation.run()
    federation.transport.scores(["c0"])
    assert federation.server.scores["c0"].loss < before - 0.02
    assert len(federation.catch_up()) == 1


def test_a_loss_that_reads_weights_past_the_round_is_refused() -> None:
    """Its client would send scalars of weights that were not moved."""

    def switched_off(model: torch.nn.Module, batch: object) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            return loss(model, batch)

    client = worker(1)
    client.loss_fn = switched_off
    client.begin(settings())
    before = client.digest()
    with pytest.raises(ValueError, match="reads parameter '0.weight', .* cannot see"):
        client.estimate(0, 0)
    assert client.digest() == before
