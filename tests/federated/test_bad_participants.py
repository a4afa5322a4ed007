"""What a bad participant can do: nothing. It is refused, counted and named, and the round goes on to the same bits."""

from __future__ import annotations

import math
import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.records import decode_record, encode_record
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.federated.server.server import Server
from tests.federated.problem import Federation, settings, spoil, worker


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    found = Federation(tmp_path, clients=4)
    found.transport.round()
    return found


def tampered(federation: Federation, name: str, **changes: object) -> bytes:
    """An otherwise right reply of a client with some fields changed."""
    tasks = federation.server.open_round(federation.clients, 0.0)
    reply = m.decode(federation.clients[name].handle(tasks[name]), federation.server.tag, federation.settings)
    return m.encode(replace(reply, **changes), federation.server.tag, federation.settings)  # type: ignore[type-var]


def code_of(answer: bytes) -> str:
    message = m.decode(answer, None)
    assert isinstance(message, m.Refused) and message.reason
    return message.code


CHANGES = {
    "not a number": ({"scalars": (math.nan, 0.0, 0.0, 0.0)}, m.INVALID),
    "infinite": ({"scalars": (0.0, math.inf, 0.0, 0.0)}, m.INVALID),
    "huge": ({"scalars": (0.0, 0.0, 3e38, 0.0)}, m.INVALID),
    "too large to be a loss": ({"scalars": (0.0, 0.0, 0.0, 2001.0)}, m.INVALID),
    "loss not finite": ({"loss": math.inf}, m.INVALID),
    "no examples": ({"examples": 0}, m.INVALID),
    "too many examples": ({"examples": 1 << 30}, m.INVALID),
    "short": ({"scalars": (0.0, 0.0, 0.0)}, m.INVALID),
    "long": ({"scalars": (0.0,) * 5}, m.INVALID),
    "a round that is over": ({"number": 0}, m.STALE),
    "a round to come": ({"number": 2}, m.STALE),
    "another digest": ({"digest": "bz1-" + "0" * 64}, m.DIVERGED),
    "no digest": ({"digest": None}, m.DIVERGED),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_bad_reply_is_refused_and_the_round_goes_on(
    what: str, federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    changes, code = CHANGES[what]
    data = tampered(federation, "c1", **changes)
    assert code_of(federation.server.receive("c1", data)) == code
    assert federation.server.refusals["c1", code] == 1
    assert "c1" in caplog.text and code in caplog.text
    for name in ("c0", "c2", "c3"):
        federation.server.receive(name, federation.clients[name].handle(federation.server._task(name, 0)))
    if code != m.STALE:
        assert federation.server.ready(0.0)
    assert federation.server.close_round().participants == ("c0", "c2", "c3")
    federation.run()
    assert len(federation.catch_up()) == 1


def test_nobody_speaks_for_another_or_twice(federation: Federation) -> None:
    good = tampered(federation, "c1")
    assert code_of(federation.server.receive("stranger", good)) == m.UNWANTED
    assert m.kind_of(federation.server.receive("c1", good)) == m.ACCEPTED
    # the same again is a repetition on the way; another one is not
    assert m.kind_of(federation.server.receive("c1", good)) == m.ACCEPTED
    other = m.decode(good, federation.server.tag, federation.settings)
    assert isinstance(other, m.Reply)
    forged = m.encode(replace(other, scalars=(9.0,) * 4), federation.server.tag, federation.settings)
    assert code_of(federation.server.receive("c1", forged)) == m.UNWANTED
    federation.transport.round()
    assert code_of(federation.server.receive("c1", good)) == m.STALE


def test_a_slot_of_another_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=settings(own_directions=True))
    data = tampered(federation, "c1", slot=3)
    assert code_of(federation.server.receive("c1", data)) == m.INVALID


def test_messages_of_another_run_version_or_size_are_refused(federation: Federation) -> None:
    good = tampered(federation, "c1")
    assert code_of(federation.server.receive("c1", good[:-1])) == m.INVALID
    assert code_of(federation.server.receive("c1", b"")) == m.INVALID
    assert code_of(federation.server.receive("c1", bytes(5000))) == m.INVALID
    other = m.encode(m.CatchUp(0), bytes(8))
    assert code_of(federation.server.receive("c1", other)) == m.INVALID
    from_server = m.encode(m.Task(1, 1, b""), federation.server.tag)
    assert code_of(federation.server.receive("c1", from_server)) == m.INVALID
    scores = m.encode(m.Scores(1, 4_000_000_000, 0.0, 1.0), federation.server.tag)
    assert code_of(federation.server.receive("c1", scores)) == m.UNWANTED
    made_up = m.encode(m.Refused("x" * 100, "y\nforged line"), federation.server.tag)
    federation.server.receive("c1", made_up)
    assert {code for _, code in federation.server.refusals} <= set(m.CODES)


@pytest.mark.parametrize("field", ["contract", "base_digest", "layout_digest"])
def test_a_client_of_another_model_or_contract_is_told_why(field: str, federation: Federation) -> None:
    hello = m.decode(federation.clients["c0"].hello())
    wrong = m.encode(replace(hello, **{field: "another"}))  # type: ignore[type-var]
    answer = m.decode(federation.server.receive("new", wrong))
    assert isinstance(answer, m.Refused) and answer.code == m.MISMATCH
    assert field in answer.reason and "another" in answer.reason


def test_a_client_that_talks_too_much_is_cut_off(tmp_path: Path) -> None:
    federation = Federation(tmp_path, policy=RoundPolicy(most_messages=5))
    hello = federation.clients["c0"].hello()
    answers = [m.kind_of(federation.server.receive("c0", hello)) for _ in range(8)]
    assert answers[-4:] == [m.REFUSED] * 4
    federation.run()
    assert federation.server.finished


@pytest.mark.parametrize("replica", [True, False])
def test_a_client_whose_weights_differ_is_told_and_repaired(replica: bool, tmp_path: Path) -> None:
    federation = Federation(tmp_path, replica=replica)
    federation.transport.round()
    federation.transport.round()
    spoil(federation.clients["c2"])
    result = federation.transport.round()
    if replica:
        # told while the round is open: it begins again and answers in time
        assert result.participants == ("c0", "c1", "c2", "c3")
    else:
        assert result.participants == ("c0", "c1", "c3")
    assert federation.server.refusals["c2", m.DIVERGED] == 1
    federation.run()
    assert federation.server.refusals.total() == 1
    assert len(federation.catch_up()) == 1


def test_without_a_majority_no_round_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation = Federation(tmp_path, clients=2, replica=False, policy=RoundPolicy(quorum=1))
    federation.transport.round()
    spoil(federation.clients["c1"])
    assert federation.transport.round().record is None
    assert "no majority" in caplog.text
    federation.run()
    assert len(federation.catch_up()) == 1


def test_a_client_refuses_what_is_wrong_and_lives_on(federation: Federation) -> None:
    client, tag = federation.clients["c0"], federation.server.tag
    before = client.worker.digest()
    for data in (
        b"nonsense",
        m.encode(m.Reply(0, 1, 0.0, (0.0,) * 4), tag, federation.settings),
        m.encode(m.Task(1, 0, b"\0" * 7), tag),
        m.encode(m.Records(9, 1, b"", True), tag),
        m.encode(m.Records(1, 4_000_000_000, b"", True), tag),
        m.encode(m.Welcome({"run": "x"}, "y", 0), tag),
        m.encode(m.Records(5, 0, b"", True, {"path": "nowhere", "round": 5, "digest": "x"}), tag),
    ):
        assert code_of(client.handle(data)) in (m.INVALID, m.STALE, m.MISMATCH), data
    assert client.worker.digest() == before
    federation.run()
    assert len(federation.catch_up()) == 1


def test_a_failing_worker_is_a_refusal_and_the_round_goes_on(federation: Federation) -> None:
    def broken(number: int, step: int) -> tuple[object, int]:
        raise OSError("the disk with the data is gone")

    federation.clients["c3"].worker.batch_of = broken  # type: ignore[attr-defined]
    assert federation.transport.round().participants == ("c0", "c1", "c2")
    assert federation.server.refusals["c3", m.INVALID] == 1


def test_a_client_ahead_of_a_restored_server_begins_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    copy = (tmp_path / "server.bz").read_bytes()
    for _ in range(5):
        federation.transport.round()
    federation.server.close()
    (tmp_path / "server.bz").write_bytes(copy)
    federation.restart_server()
    federation.transport.join()
    federation.run()
    assert federation.server.journal.next_step == federation.settings.rounds
    assert len(federation.catch_up()) == 1


@pytest.mark.parametrize("quorum", [1, 4])
def test_a_client_that_fails_for_long_is_asked_again(quorum: int, tmp_path: Path) -> None:
    federation = Federation(tmp_path, policy=RoundPolicy(quorum=quorum, most_messages=8))
    worker_of = federation.clients["c3"].worker
    batches, failures = worker_of.batch_of, 0  # type: ignore[attr-defined]

    def broken(number: int, step: int) -> tuple[object, int]:
        nonlocal failures
        failures += 1
        raise IndexError("row 3 says: secret")

    worker_of.batch_of = broken  # type: ignore[attr-defined]
    for _ in range(30):
        federation.transport.round()
    worker_of.batch_of = batches  # type: ignore[attr-defined]
    if quorum == 4:
        assert federation.server.number == 0 and failures == 30
        federation.run()
    assert len(federation.catch_up()) == 1


def test_a_client_whose_update_fails_half_way_begins_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.transport.round()
    weights = federation.clients["c2"].worker.weights  # type: ignore[attr-defined]
    replay = weights.replay

    def once(records: object) -> None:
        weights.replay = replay
        with torch.no_grad():
            next(weights.blocks.model.parameters()).view(-1)[0] += 1.0
        raise RuntimeError("out of memory")

    weights.replay = once
    assert federation.transport.round().participants == ("c0", "c1", "c3")
    federation.transport.join(["c2"])
    federation.run()
    assert len(federation.catch_up()) == 1
    assert federation.server.refusals.total() == 1


def test_a_constantly_wrong_client_costs_one_repair_a_round(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    resets = 0
    broken = federation.clients["c1"].worker
    reset = broken.reset

    def counted(snapshot: object) -> None:
        nonlocal resets
        resets += 1
        reset(snapshot)  # type: ignore[arg-type]

    broken.reset = counted  # type: ignore[method-assign]
    broken.digest = lambda: "bz1-" + "0" * 64  # type: ignore[method-assign]
    for _ in range(4):
        assert federation.transport.round().participants == ("c0", "c2", "c3")
    assert 1 <= resets <= 8


def test_digests_that_were_not_asked_for_expel_nobody(tmp_path: Path) -> None:
    federation = Federation(tmp_path, policy=RoundPolicy(digest_every=5))
    federation.transport.round()
    for name in ("c0", "c1", "c2"):
        data = tampered(federation, name, digest="bz1-" + "a" * 64)
        assert code_of(federation.server.receive(name, data)) == m.INVALID
    honest = federation.clients["c3"].handle(federation.server._task("c3", 0))
    federation.server.receive("c3", honest)
    assert federation.server.close_round().participants == ("c3",)
    assert not federation.server.diverged


def test_a_replica_of_other_weights_is_refused(tmp_path: Path) -> None:
    moved = worker(99).weights
    with torch.no_grad():
        next(moved.blocks.model.parameters()).view(-1)[0] += 1.0
    moved._digest = None
    base = worker(98)
    with pytest.raises(ValueError, match="load the base model"):
        Server.create(tmp_path / "s.bz", settings(), base.base_digest, base.layout, replica=moved)


def test_a_client_of_another_run_does_not_talk_for_ever(tmp_path: Path) -> None:
    one = Federation(make(tmp_path / "one"))
    other = Federation(make(tmp_path / "other"), chosen=replace(settings(), run="f" * 32))
    one.transport.clients["c0"] = other.clients["c0"]
    before = one.server.refusals.total()
    one.transport.join(["c0"])
    one.transport.round()
    assert one.server.refusals.total() - before <= 3


def bombard(tmp_path: Path, count: int) -> None:
    """Random and changed messages at server and client between honest rounds; the end is that of an undisturbed run.

    They come to the server from a stranger: what a client itself sends under its own name, it may.
    """
    chance = random.Random(count)
    run = settings(rounds=5)
    quiet, loud = (
        Federation(make(tmp_path / "quiet"), chosen=run),
        Federation(make(tmp_path / "loud"), chosen=run, policy=RoundPolicy(most_messages=1 << 30)),
    )
    quiet.run()
    while not loud.server.finished:
        tasks = loud.server.open_round(loud.clients, 0.0)
        answers = {name: loud.clients[name].handle(task) for name, task in tasks.items()}
        for _ in range(count // 10):
            good = bytearray(chance.choice([*answers.values(), *tasks.values()]))
            for _ in range(chance.randrange(1, 4)):
                good[chance.randrange(len(good))] = chance.randrange(256)
            bad = bytes(good) if chance.random() < 0.8 else chance.randbytes(chance.randrange(200))
            if chance.random() < 0.7:
                # a right checksum and tag, so that it reaches the parsers and the machines
                bad = bytes((chance.randrange(3, 11), 1)) + loud.server.tag + bad[10:-4]
                bad += struct.pack("<I", zlib.crc32(bad))
            if bad in (*answers.values(), *tasks.values()):
                continue
            assert m.kind_of(loud.server.receive("x", bad)) in range(1, 11)
            assert m.kind_of(loud.clients["c2"].handle(bad)) in range(11)
        for name, answer in answers.items():
            loud.server.receive(name, answer)
        assert len(loud.server.close_round().participants) == 4
    assert loud.catch_up() == quiet.catch_up()


def make(path: Path) -> Path:
    path.mkdir()
    return path


def test_malformed_messages_change_nothing(tmp_path: Path) -> None:
    bombard(tmp_path, 2_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_malformed_messages_change_nothing(tmp_path: Path) -> None:
    bombard(tmp_path, 100_000)


def test_a_journal_of_another_model_is_refused(tmp_path: Path) -> None:
    from blockzo.federated.client.client import Client
    from blockzo.journal.file import JournalError

    federation = Federation(tmp_path)
    federation.clients["c0"].close()
    other = worker(0, torch.bfloat16)
    with pytest.raises(JournalError, match="load the base model it names"):
        Client(other, tmp_path / "c0.bz")


@pytest.mark.parametrize("rate", [1e39, -1e308, float("inf"), float("nan")])
def test_a_record_that_cannot_be_applied_leaves_a_client_as_it_was(rate: float, tmp_path: Path) -> None:
    federation = Federation(tmp_path, clients=1, chosen=settings(weight_decay=0.5))
    federation.transport.round()
    client, run = federation.clients["c0"], federation.settings
    good = encode_record(federation.server.journal.records()[0], run)
    bad = good[:5] + struct.pack("<d", 0.05) + struct.pack("<d", rate) + good[21:]
    with pytest.raises(ValueError, match="cannot be applied|expected a finite"):
        decode_record(bad, 0, 0, run)
    before = client.position, client.worker.digest(), (tmp_path / "c0.bz").read_bytes()
    message = m.Records(client.position, 1, bad)
    answer = m.decode(client.handle(m.encode(message, client.tag)), client.tag, run)
    assert isinstance(answer, m.Refused) and answer.code == m.INVALID
    assert (client.position, client.worker.digest(), (tmp_path / "c0.bz").read_bytes()) == before
