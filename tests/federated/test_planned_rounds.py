"""Rounds that a planner plans: server and clients come to one plan from costs and records; against a single process."""

from __future__ import annotations

import math
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import blockzo as bz
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.addresses import noise_seed
from blockzo.federated.protocol.auto import auto_of, describe
from blockzo.federated.protocol.planned import RoundPlanner, mark_of
from blockzo.federated.protocol.records import decode_record, encode_record
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.journal.file import Journal
from blockzo.methods.auto import Auto
from tests.federated.problem import RUN, Federation, loss, network, settings, worker

MOST = 8


def run_of(auto: Auto | None = None, **given: Any) -> RunSettings:
    auto = auto or Auto(most=MOST, costs=(2.0, 1.0), window=4)
    told = describe(auto, auto.costs or (), given.pop("whole", False))
    values: dict[str, Any] = {"rounds": 40, "lr": (1.0, 1.0), "eps": (1e-2, 1e-2), **given}
    return RunSettings(RUN, told, (auto.most, auto.most), **values)


@pytest.mark.parametrize("rank", [None, 2])
def test_one_client_makes_the_records_of_a_single_process(
    rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(weight_decay=0.01, rank=rank)
    federation = Federation(tmp_path, 1, run)
    monkeypatch.setattr("blockzo.optim.zo.step_seed", lambda seed, step: noise_seed(run, step))
    model, auto = network(), auto_of(run.method)[0]
    zo = bz.ZO(model, loss, auto, bz.Blocks(model, [1]), eps=1e-2, weight_decay=0.01, max_group=1, rank=rank)
    moved = set()
    for number in range(40):
        batch, _ = worker(0).batch_of(number, 0)
        found, wanted = federation.transport.round().record, zo.step(batch).record
        assert found == wanted, number
        moved |= {block for block, update in enumerate(wanted.blocks) if any(update.coefficients)}
    assert moved and federation.catch_up() == {bz.digest(model)}


@pytest.mark.parametrize("whole", [False, True])
def test_drop_outs_and_kills_leave_one_digest_and_one_plan(whole: bool, tmp_path: Path) -> None:
    run, chance = run_of(whole=whole), random.Random(whole)
    federation = Federation(tmp_path, 5, run, RoundPolicy(quorum=2))
    federation.live_through(chance, 100, lost=0.2, there=0.2)
    assert federation.server.finished and {code for _, code in federation.server.refusals} <= {m.STALE, m.UNWANTED}
    digests = federation.catch_up()
    assert len(digests) == 1
    journal = Journal.open(tmp_path / "server.bz")
    model, fresh = network(), RoundPlanner(run)
    bz.replay_(model, journal.records(), journal.layout)
    assert {bz.digest(model)} == digests
    for record in journal.records():
        body = encode_record(record, run)
        assert decode_record(b"-" + body + b"-", 1, record.step, run) == (record, 1 + len(body))
        assert fresh.plan(record.step).seed == record.seed
        fresh.observe([record])
    planners = [client.worker.weights.planner for client in federation.clients.values()]  # type: ignore[attr-defined]
    planners.append(federation.server.history.planner)
    assert {mark_of(planner.plan(40)) for planner in planners} == {mark_of(fresh.plan(40))}


def test_it_learns(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 4, run_of(rounds=80))
    federation.transport.scores(["c0"])
    before = federation.server.scores["c0"].loss
    federation.run()
    federation.transport.scores(["c0"])
    assert federation.server.scores["c0"].loss < before - 0.03


def test_losses_of_another_plan_and_losses_that_cannot_be_are_refused(tmp_path: Path) -> None:
    run = run_of()
    federation = Federation(tmp_path, 2, run, RoundPolicy(digest_every=0))
    server, tag = federation.server, federation.server.tag
    tasks = server.open_round(federation.clients, 0.0)
    good = m.decode(federation.clients["c0"].handle(tasks["c0"]), tag, run)
    assert isinstance(good, m.Reply) and len(good.scalars) == 5

    def answer(reply: m.Reply) -> m.Message:
        return m.decode(server.receive("c0", m.encode(reply, tag, run)), tag, run)

    for reply, reason in (
        (replace(good, plan=good.plan ^ 1), "losses of another plan"),
        (replace(good, scalars=good.scalars[:-1]), "4 losses; the plan of this round has 5"),
        (replace(good, scalars=good.scalars * 9), "bytes of scalars"),
        (replace(good, scalars=(math.nan, *good.scalars[1:])), "not finite"),
        (replace(good, scalars=(1e7, *good.scalars[1:])), "absurd"),
        (replace(good, scalars=(50.0, *good.scalars[1:])), "no change of the loss is above 20"),
        (replace(good, examples=0), "0 examples"),
    ):
        found = answer(reply)
        assert isinstance(found, m.Refused) and found.code == m.INVALID and reason in found.reason, (found, reason)
    assert isinstance(answer(good), m.Accepted)
    assert len(m.encode(good, tag, run)) == 14 + 13 + 4 + 4 * 5 <= m.reply_bytes(run)
    # a client whose planner has seen other records
    planner = federation.clients["c1"].worker.weights.planner  # type: ignore[attr-defined]
    planner.planner.first_eps[1] *= 2
    refused = m.decode(server.receive("c1", federation.clients["c1"].handle(tasks["c1"])), tag, run)
    assert isinstance(refused, m.Refused) and "came to another one" in refused.reason


def test_records_that_no_planner_led_to_are_refused(tmp_path: Path) -> None:
    run = run_of()
    federation = Federation(tmp_path, 2, run)
    records = [federation.transport.round().record for _ in range(6)]
    data = [encode_record(record, run) for record in records if record is not None]
    sizes = [len(r.losses) + sum(map(len, r.directions)) for r in records if r is not None]
    assert [len(body) for body in data] == [4 * size + 8 * 2 + 19 for size in sizes]
    head = struct.Struct("<BHHHId")
    fields = list(head.unpack_from(data[3]))
    for place, value, reason in (
        (0, 9, "flags 9"),
        (1, 7, "block 7"),
        (2, MOST + 1, "directions"),
        (3, 40, "40 losses"),
        (4, 1, "round 1"),
        (5, math.inf, "cannot be"),
    ):
        changed = [*fields[:place], value, *fields[place + 1 :]]
        with pytest.raises(ValueError, match=reason):
            decode_record(head.pack(*changed) + data[3][head.size :], 0, 3, run)
    for cut in range(len(data[3])):
        with pytest.raises(ValueError):
            decode_record(data[3][:cut], 0, 3, run)
    # sound by itself, but of another block than this run's planner moves
    other = [*fields[:1], 1 - fields[1], *fields[2:]]
    foreign = head.pack(*other) + data[3][head.size :]
    planner = RoundPlanner(run)
    planner.observe([record for record in records[:3] if record is not None])
    with pytest.raises(ValueError, match="this planner comes to"):
        planner.observe([decode_record(foreign, 0, 3, run)[0]])
    with pytest.raises(ValueError, match="after 3 records"):
        planner.plan(5)
    client = worker(5)
    client.begin(run)
    task = m.Task(4, 0, b"".join([*data[:3], foreign]))
    newcomer = federation.clients["c0"]
    newcomer.handle(m.encode(m.Refused(m.DIVERGED, "begin again"), federation.server.tag))
    assert newcomer.position == 0
    refused = m.decode(newcomer.handle(m.encode(task, federation.server.tag)), federation.server.tag, run)
    assert isinstance(refused, m.Refused) and newcomer.position == 0


def test_what_a_planner_does_not_go_with(tmp_path: Path) -> None:
    for given, reason in (
        ({"local_steps": 2}, "with local_steps"),
        ({"own_directions": True}, "with own_directions"),
        ({"secure_sum": True}, "with secure_sum"),
        ({"pool": 100}, "with pool"),
        ({"per_example": 4}, "with per_example"),
        ({"aggregate": "median"}, "with aggregate median"),
        ({"eps": (1e-2, 1e30)}, "expected 1e-30 to 1e6"),
    ):
        with pytest.raises(ValueError, match=reason):
            run_of(**given)
    private = {"mode": "local", "clip": 2.0, "noise_multiplier": 1.0, "delta": 1e-5}
    with pytest.raises(ValueError, match="with privacy"):
        run_of(privacy=private, weighting="equal")
    good = run_of()
    assert RunSettings.from_dict(good.as_dict()) == good
    for changed, reason in (
        ({"costs": None}, "needs the costs"),
        ({"costs": [1.0]}, "1 costs of a planner"),
        ({"costs": [1.0, -1.0]}, "positive number"),
        ({"whole": 1}, "needs the costs"),
        ({"most": 1 << 20}, "directions at most"),
        ({"window": 1 << 20}, "window"),
        ({"eps_range": [0.0, 1.0]}, "eps_range"),
        ({"clip": 1e300}, "up to 1e6"),
        ({"surprise": 1}, "unknown"),
    ):
        with pytest.raises(ValueError, match=reason):
            RunSettings.from_dict({**good.as_dict(), "method": {**good.method, **changed}})
    with pytest.raises(ValueError, match="leave snapshot_every at 0"):
        Federation(tmp_path, 1, good, RoundPolicy(snapshot_every=3))
    half = worker(0)
    for parameter in half.model[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    half = type(half)(type(half.weights)(bz.Blocks(half.model, [1])), half.batch_of, loss)
    with pytest.raises(ValueError, match="weights in"):
        half.begin(good)
    assert not settings().planned
