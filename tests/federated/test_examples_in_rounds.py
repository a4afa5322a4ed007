"""Rounds in which every example has directions of its own: materialised noise, drop-outs and kills, hostile counts."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import blockzo as bz
from blockzo.federated.client.policy import ClientPolicy, PolicyError
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.addresses import directions_of_steps, noise_seed, step_directions
from blockzo.federated.protocol.examples import contributors_of, directions_of, padded, widths
from blockzo.federated.protocol.records import decode_record, encode_record, make_record
from blockzo.federated.protocol.round_record import problem_of, scalar_limit
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.journal.file import Journal
from blockzo.journal.outside import MOST_SCALARS
from blockzo.methods.base import Method
from blockzo.methods.tree import BlockMove
from blockzo.noise import Noise
from blockzo.optim.examples import scalars_of
from tests.federated.problem import Federation, loss, network, settings, worker
from tests.zoo.harness import Reference

MOST = 12
"""Examples of a local step; clients 0, 1, 2, ... have 8, 9, 10, ..."""
FORMS: dict[str, dict[str, Any]] = {
    "shared": {},
    "own": {"own_directions": True},
    "local steps": {"local_steps": 2, "weighting": "equal"},
    "own local steps": {"local_steps": 2, "own_directions": True},
    "pool": {"pool": 256, "rebase": 3},
    "own pool": {"pool": 256, "rebase": 3, "own_directions": True},
    "unsigned sum": {"secure_sum": "unsigned"},
}


def run_of(method: Method | None = None, **given: Any) -> RunSettings:
    return settings(method or bz.SPZO(1, 2), **{"lr": (0.02, 0.02), "rounds": 8, "per_example": MOST, **given})


def policy_of(run: RunSettings, quorum: int = 3) -> RoundPolicy:
    return RoundPolicy(quorum=quorum, clients=4 if run.secure_sum else None)


@pytest.mark.parametrize("method", [bz.SPZO(1, 2), bz.OneSided(2), bz.FZOO(2)], ids=str)
@pytest.mark.parametrize("form", ["shared", "own"])
def test_a_round_is_the_central_computation_with_materialised_noise(method: Method, form: str, tmp_path: Path) -> None:
    run = run_of(method, **FORMS[form])
    federation = Federation(tmp_path, 3, run)
    model, cut = network(), bz.Blocks(network(), [1])
    noise, tree = Noise(noise_seed(run, 0)), method.tree(2)
    slots = range(3) if run.own_directions else [0] * 3
    wanted: list[dict[int, float]] = [{}, {}]
    rows = sum(8 + client for client in range(3))
    for client, slot in enumerate(slots):
        (x, labels), count = worker(client).batch_of(0, 0)
        known = step_directions(run, 0, slot, 0, count)
        losses = []
        for b in range(count):
            reference = Reference(model, cut.layout, noise, run.eps, loss, (x[b : b + 1], labels[b : b + 1]))
            moves = [
                [BlockMove(v.block, known[v.block][v.direction * count + b], v.sign) for v in path]
                for path in tree.leaf_moves()
            ]
            losses.append([reference(path) for path in moves])
        for total, found, numbers in zip(
            wanted, scalars_of(method, losses, [1 / count] * count, run.eps), known, strict=True
        ):
            for k, scalar in found.items():
                total[numbers[k]] = total.get(numbers[k], 0.0) + 0.02 * count / rows * scalar
    result = federation.transport.round()
    assert result.record is not None and result.examples == rows
    for block, total in zip(result.record.blocks, wanted, strict=True):
        assert block.directions == tuple(sorted(total))
        size = max(map(abs, total.values()), default=0.0)
        assert block.coefficients == pytest.approx([total[k] for k in block.directions], rel=0.02, abs=0.01 * size)
    # another machine has the same bits from the record's bytes
    record, _ = decode_record(encode_record(result.record, run), 0, 0, run)
    bz.replay_(model, [record], cut.layout)
    assert federation.catch_up() == {bz.digest(model)}


@pytest.mark.parametrize("form", FORMS)
def test_drop_outs_and_kills_leave_one_digest(form: str, tmp_path: Path) -> None:
    run, chance = run_of(**FORMS[form]), random.Random(form)
    federation = Federation(tmp_path, 5, run, policy_of(run))
    federation.live_through(chance, 60, lost=0.15, there=0.3)
    assert {code for _, code in federation.server.refusals} <= {m.STALE, m.UNWANTED, m.INVALID}
    digests = federation.catch_up()
    assert digests == {federation.replica.digest()}  # type: ignore[union-attr]
    if not run.pool:
        journal = Journal.open(tmp_path / "server.bz")
        model = network()
        bz.replay_(model, journal.records(), journal.layout)
        assert bz.digest(model) in digests
    for record in Journal.open(tmp_path / "server.bz").records():
        assert decode_record(encode_record(record, run), 0, record.step, run)[0] == record


def test_it_learns(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 4, run_of(rounds=20, lr=(0.05, 0.05)))
    federation.transport.scores(["c0"])
    before = federation.server.scores["c0"].loss
    federation.run()
    federation.transport.scores(["c0"])
    assert federation.server.scores["c0"].loss < before - 0.1


@pytest.mark.parametrize("weighting", ["examples", "equal"])
def test_a_secure_sum_is_the_plain_mean(weighting: str, tmp_path: Path) -> None:
    records = []
    for name, sum_ in (("plain", False), ("sum", "unsigned")):
        (tmp_path / name).mkdir()
        run = run_of(weighting=weighting, secure_sum=sum_, lr=(1.0, 1.0))
        result = Federation(tmp_path / name, 3, run, RoundPolicy(clients=3, quorum=2)).transport.round()
        assert result.record is not None
        records.append(result.record)
    plain, summed = records
    for one, other in zip(plain.blocks, summed.blocks, strict=True):
        # how many examples a client has is hidden: there is a place for as many as there can be
        assert other.directions[: len(one.directions)] == one.directions
        assert len(other.directions) == len(one.directions) // 10 * MOST
        assert other.coefficients[: len(one.directions)] == pytest.approx(one.coefficients, abs=1e-6)
        assert not any(other.coefficients[len(one.directions) :])


def test_clients_and_examples_have_numbers_of_their_own() -> None:
    run = run_of(bz.SPZO(1, 2), own_directions=True, local_steps=3)
    for block, count in enumerate(run.directions):
        counts = [(slot, step, 1 + (slot + step) % MOST) for slot in range(4) for step in range(3)]
        numbers = [k for slot, step, n in counts for k in step_directions(run, 5, slot, step, n)[block]]
        assert len(set(numbers)) == len(numbers) == count * sum(n for _, _, n in counts)
    assert run.slots == MOST_SCALARS // run.scalars
    with pytest.raises(ValueError, match="for each of 16384 examples"):
        run_of(local_steps=1 << 18, per_example=1 << 14)


def test_replies_and_records_are_as_small_as_promised() -> None:
    """4 bytes an example and direction; 2 bytes for each number of examples; 4 more for the list of a record, 2 a slot."""
    scalars = 16 * 2
    for own in (False, True):
        run = settings(bz.Decoupled((0, 2)), per_example=16, own_directions=own)
        reply = m.Reply(9, 16, 0.5, (0.25,) * scalars, "bz1-" + "a" * 64, 0, (16,))
        up = m.encode(reply, bytes(8), run)
        assert len(up) == m.reply_bytes(run) == 4 * scalars + 61 + 2 * own
        small = replace(reply, scalars=(0.25,) * 6, counts=(3,))
        assert len(m.encode(small, bytes(8), run)) == 4 * 6 + 61 + 2 * own
        clients = [(slot, (16,)) for slot in range(10 if own else 1)]
        directions = directions_of(clients, run, 8)
        values = [(0.25,) * len(block) for block in directions]
        record = make_record(run, 8, 0.5, directions, values, run.rates(8))
        task = m.encode(m.Task(9, 8, encode_record(record, run)), bytes(8))
        assert len(task) == (4 * scalars + 4) * len(clients) + 54
        assert m.decode(up, bytes(8), run) == reply


COUNTS = st.lists(st.integers(1, MOST), min_size=2, max_size=2).map(tuple)


@given(st.data())
def test_a_record_survives_its_travel(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["local steps", "own local steps", "pool", "own pool"]))
    run = run_of(**{**FORMS[form], "local_steps": 2})
    slots = sorted(data.draw(st.sets(st.integers(0, 40), min_size=1, max_size=4))) if run.own_directions else [0]
    clients = [(slot, data.draw(COUNTS)) for slot in slots]
    directions = directions_of(clients, run, 5)
    values = [tuple(float(k % 7) for k in block) for block in directions]
    record = make_record(run, 5, 0.5, directions, values, run.rates(5))
    if form != "own pool":
        assert contributors_of(record, run) == clients
    body = encode_record(record, run)
    assert decode_record(b"--" + body + b"--", 2, 5, run) == (record, 2 + len(body))
    for cut in range(0, len(body), 7):
        with pytest.raises(ValueError):
            decode_record(body[:cut], 0, 5, run)


def test_lists_of_clients_that_cannot_be_are_refused() -> None:
    run = run_of(own_directions=True)
    head = struct.pack("<Bf2d", 4, 0.5, 0.02, 0.02)

    def body(count: int, *pairs: tuple[int, int]) -> bytes:
        return head + struct.pack("<I", count) + b"".join(struct.pack("<HH", *pair) for pair in pairs) + bytes(4 * 2000)

    decode_record(body(2, (0, 3), (7, MOST)), 0, 3, run)
    for data, reason in (
        (body(0), "0 clients"),
        (body(1 << 31), "2147483648 clients"),
        (body(2, (7, 3), (0, 3)), "slot 0"),
        (body(2, (7, 3), (7, 3)), "slot 7"),
        (body(1, (7, 0)), "0. examples"),
        (body(1, (7, MOST + 1)), "13. examples"),
        (body(20, *((slot, MOST) for slot in range(20)))[:-7000], "bytes for 720 coefficients"),
        (b"\6" + body(1, (0, 3))[1:], "flags 6"),
        (b"\2" + head[1:] + struct.pack("<I", 1 << 30), "1073741824 directions"),
    ):
        with pytest.raises(ValueError, match=reason):
            decode_record(data, 0, 3, run)
    shared, secure = run_of(), run_of(secure_sum=True)
    with pytest.raises(ValueError, match="2 clients; expected 1 to 1"):
        decode_record(body(2, (0, 3), (1, 3)), 0, 3, shared)
    with pytest.raises(ValueError, match="slot 1; expected ascending ones below 1"):
        decode_record(body(1, (1, 3)), 0, 3, shared)
    for other in (secure, settings()):
        with pytest.raises(ValueError, match="flags 4"):
            decode_record(body(1, (0, 3)), 0, 3, other)
    # bits of everyone, whoever sends them: a hidden number of examples is the largest
    hidden = run_of(own_directions=True, weighting="equal", privacy=LOCAL)
    with pytest.raises(ValueError, match="expected 12 to 12"):
        decode_record(body(1, (0, 3)), 0, 3, hidden)


LOCAL = {"mode": "local", "clip": 2.0, "noise_multiplier": 1.0, "delta": 1e-5}


def hostile(run: RunSettings, **changed: Any) -> m.Reply:
    counts = changed.get("counts", (3,) * run.local_steps)
    values = {"scalars": (0.5,) * sum(widths(run, counts)), "examples": 3 * run.local_steps, **changed}
    return m.Reply(0, values["examples"], 0.5, values["scalars"], values.get("digest"), 0, counts)


@pytest.mark.parametrize("form", ["shared", "local steps"])
def test_numbers_of_examples_that_cannot_be_are_refused(form: str, tmp_path: Path) -> None:
    run = run_of(**FORMS[form])
    federation = Federation(tmp_path, 2, run, RoundPolicy(digest_every=0))
    federation.server.open_round(federation.clients, 0.0)
    good, tag, steps = hostile(run), federation.server.tag, run.local_steps
    limit = scalar_limit(run, federation.server.policy, 0)

    def answer(reply: m.Reply) -> m.Message:
        return m.decode(federation.server.receive("c0", m.encode(reply, tag, run)), tag, run)

    for reply, reason in (
        (hostile(run, counts=(0,) * steps, scalars=()), "0 and 0 examples"),
        (hostile(run, counts=(MOST + 1,) * steps, scalars=good.scalars), "13 and 13 examples"),
        (replace(good, counts=(4,) * steps), "bytes of scalars"),
        (replace(good, counts=()), "examples"),
        (replace(good, scalars=(*good.scalars, 0.5)), "bytes of scalars"),
        (replace(good, examples=MOST * steps + 1), f"expected 1 to {MOST * steps}"),
        # none is too large alone; together they are a change of the loss that cannot be
        (replace(good, scalars=(0.4 * limit,) * 3 + good.scalars[3:]), "larger than"),
    ):
        found = answer(reply)
        assert isinstance(found, m.Refused) and found.code == m.INVALID and reason in found.reason, (found, reason)
    assert isinstance(answer(replace(good, scalars=(0.3 * limit,) * 3 + good.scalars[3:])), m.Accepted)
    assert isinstance(
        answer(replace(good, counts=(2,) * steps, scalars=(0.5,) * sum(widths(run, (2,) * steps)))), m.Refused
    )
    result = federation.server.close_round()
    assert result.participants == ("c0",) and result.record is not None
    assert result.record.blocks[1].directions == directions_of_steps(run, 0, 0, (3,) * steps)[1]
    other = settings()
    assert problem_of(replace(hostile(other, counts=(), examples=3), counts=(3,)), 0, other, RoundPolicy()) is not None


def test_what_it_does_not_go_with(tmp_path: Path) -> None:
    for given_, reason in (
        ({"aggregate": "median"}, "expected one of mean"),
        ({"aggregate": "sign"}, "expected one of mean"),
        ({"per_example": 1 << 15}, "integer from 0 to 16384"),
        ({"per_example": -1}, "integer from 0"),
        ({"pool": 20}, "at least as many"),
        ({"secure_sum": True, "own_directions": True}, "shared directions alone"),
    ):
        with pytest.raises(ValueError, match=reason):
            run_of(**given_)
    assert RunSettings.from_dict(run_of().as_dict()) == run_of()
    assert "per_example" not in settings().as_dict()
    with pytest.raises(PolicyError, match="directions of a round: 49152 in the run, at most 16384"):
        ClientPolicy().check(run_of(per_example=1 << 14))
    small = worker(1)
    small.begin(run_of(per_example=8))
    with pytest.raises(ValueError, match="a batch of 9 rows; expected 8 at most"):
        small.estimate(0, 0)

    def coupled(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0]) - model(batch[0]).mean(0)).square().mean()

    small = worker(1)
    small.loss_fn = coupled
    small.begin(run_of())
    with pytest.raises(ValueError, match="must not see each other"):
        small.estimate(0, 0)


def test_scalars_of_fewer_examples_are_padded_block_by_block() -> None:
    run = run_of(bz.Decoupled((1, 2)), local_steps=2, per_example=3)
    scalars = [float(i) for i in range(1, 13)]
    assert padded(run, scalars, (2, 2), (3, 2)) == [1, 2, 0, 3, 4, 5, 6, 0, 0, *range(7, 13)]
    assert len(padded(run, scalars, (2, 2))) == run.scalars
