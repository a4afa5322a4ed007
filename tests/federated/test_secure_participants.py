"""Bad participants of secure sums are refused, counted and named where that can be known; what cannot hide is not begun."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from blockzo.federated.client.client import Client
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.federated.secagg import crypto
from blockzo.federated.secagg.round import NOBODY
from blockzo.federated.server.server import Server
from tests.federated.problem import Federation, settings, worker
from tests.federated.secure_problem import (
    PHASES,
    code_of,
    finish,
    inner,
    make,
    opened,
    sealed,
    sum_of,
)


@pytest.mark.parametrize("phase", range(4), ids=PHASES)
def test_bad_messages_are_refused_counted_and_named_and_the_round_goes_on(
    phase: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation = make(tmp_path)
    server = federation.server
    earlier = opened(federation, phase)
    good = {name: federation.clients[name].handle(message) for name, message in earlier.items()}
    digest = server.journal.base_digest if phase == 0 else None
    body = inner(good["c1"], federation)

    def sent(name: str, changed: bytes, told: str | None = digest) -> str:
        return code_of(server.receive(name, sealed(changed, federation, told)))

    assert sent("c1", body[:-1]) == m.INVALID
    assert sent("c1", body + b"\0") == m.INVALID
    assert sent("c1", body[:17]) == m.INVALID
    assert sent("c1", bytes([99]) + body[1:]) == m.INVALID
    assert sent("c1", body[:1] + bytes(16) + body[17:]) == m.STALE
    assert sent("stranger", body) == m.UNWANTED
    for other in range(phase):
        assert sent("c1", bytes([(s.ADVERTISE, s.SHARES, s.MASKED)[other]]) + body[1:]) == m.STALE
    for other in range(phase + 1, 4):
        assert sent("c1", bytes([(0, s.SHARES, s.MASKED, s.UNMASK)[other]]) + body[1:]) == m.INVALID
    if phase == 0:
        assert sent("c1", body[:17] + bytes(160)) == m.INVALID
        assert m.kind_of(server.receive("c0", good["c0"])) == m.ACCEPTED
        # keys of another client under its own name
        assert sent("c1", inner(good["c0"], federation)) == m.INVALID
    else:
        assert sent("c1", body, "bz1-" + "0" * 64) == m.INVALID
    reply = m.Reply(0, 8, 1.0, (0.5,) * 4, server.journal.base_digest)
    assert code_of(server.receive("c1", m.encode(reply, server.tag, federation.settings))) == m.INVALID
    large = sealed(body[:17] + bytes(5000), federation)
    assert code_of(server.receive("c1", large)) == m.INVALID
    assert server.refusals["c1", m.INVALID] >= 5 and server.refusals["c1", m.STALE] == 1 + phase
    assert "c1" in caplog.text and "stranger" in caplog.text
    # the right ones still count; the same again changes nothing, another one is refused
    for name, data in good.items():
        assert m.kind_of(server.receive(name, data)) == m.ACCEPTED
        assert m.kind_of(server.receive(name, data)) == m.ACCEPTED
    assert sent("c1", body[:-1] + bytes([body[-1] ^ 1])) == m.UNWANTED
    result = finish(federation, server.advance(0.0))
    assert result.participants == ("c0", "c1", "c2", "c3")
    assert code_of(server.receive("c1", good["c1"])) == m.STALE


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_a_client_answers_once_and_only_what_is_right(phase: int, tmp_path: Path) -> None:
    federation = make(tmp_path)
    messages = opened(federation, phase)
    client, asked = federation.clients["c1"], messages["c1"]
    body = inner(asked, federation)
    for changed, code in (
        (body[:1] + bytes(16) + body[17:], m.STALE),
        (bytes([99]) + body[1:], m.STALE),
        (bytes([s.SURVIVORS if phase < 3 else s.ROSTER]) + body[1:], m.STALE),
    ):
        assert code_of(client.handle(sealed(changed, federation))) == code
    first = client.handle(asked)
    assert inner(first, federation)[0] == (s.SHARES, s.MASKED, s.UNMASK)[phase - 1]
    # no second answer: not to the same, and not to another list of names
    assert code_of(client.handle(asked)) == m.STALE
    if phase == 3:
        others = s.pack(s.SURVIVORS, body[1:17], s.pack_members([1, 2, 3]))
        assert code_of(client.handle(sealed(others, federation))) == m.STALE
    # one that cannot be gone on with ends its part, and tells nothing
    refusing = federation.clients["c2"]
    assert code_of(refusing.handle(sealed(body[:17] + b"\7\7", federation))) == m.INVALID
    assert code_of(refusing.handle(messages["c2"])) == m.STALE
    federation.server.receive("c1", first)
    del messages["c1"]
    for name in ("c0", "c3"):
        federation.server.receive(name, federation.clients[name].handle(messages[name]))
    result = finish(federation, federation.server.advance(0.0, over=True))
    assert result.participants == (("c0", "c1", "c2", "c3") if phase == 3 else ("c0", "c1", "c3"))
    federation.run()
    assert len(federation.catch_up()) == 1


def bombard(tmp_path: Path, count: int) -> None:
    """Random and changed messages between honest ones, at a server under two names and at a client; the bits stay the same.

    The client that gets and sends them never comes to its masked integers, so that the others' sums are those of a quiet run.
    """
    chance = random.Random(count)
    quiet, loud = (
        make(tmp_path / "quiet", 4, rounds=4),
        make(tmp_path / "loud", 5, RoundPolicy(quorum=4, most_messages=1 << 30), rounds=4),
    )
    quiet.run()
    victim, server = loud.clients["c4"], loud.server
    while not server.finished:
        messages = server.open_round(loud.clients, 0.0)
        while messages:
            answers = {name: loud.clients[name].handle(message) for name, message in messages.items()}
            if server.phase == 2:
                answers.pop("c4", None)
            for name, answer in answers.items():
                server.receive(name, answer)
            for _ in range(count // 16):
                bad = changed(chance, [*answers.values(), *messages.values()], loud)
                if bad in (*answers.values(), *messages.values()):
                    continue
                # what it sends under its own name may count, as long as nothing of it did in this phase
                name = "c4" if server.phase == 3 or "c4" in sum_of(loud).taken else "x"
                assert m.kind_of(server.receive(name, bad)) in range(1, 12)
                if server.phase == server.number % 4:
                    # in one phase of each round, so that it gets as far as that
                    assert m.kind_of(victim.handle(bad)) in range(12)
            messages = server.advance(0.0, over=True)
        assert server.close_round().participants == ("c0", "c1", "c2", "c3")
    del loud.clients["c4"]
    assert loud.catch_up() == quiet.catch_up()


def changed(chance: random.Random, starts: list[bytes], federation: Federation) -> bytes:
    good = bytearray(chance.choice(starts))
    for _ in range(chance.randrange(1, 4)):
        # most bytes of a sum's messages are keys and masks: the head is where parsers look
        good[chance.randrange(min(len(good), chance.choice((40, 1 << 20))))] = chance.randrange(256)
    bad = bytes(good) if chance.random() < 0.8 else chance.randbytes(chance.randrange(300))
    if chance.random() < 0.3:
        bad = bad[: chance.randrange(len(bad) + 1)]
    if chance.random() < 0.8:
        kind = m.SUM if chance.random() < 0.7 else chance.randrange(3, 12)
        bad = bytes((kind, 1)) + federation.server.tag + bad[10:-4]
        bad += struct.pack("<I", zlib.crc32(bad))
    return bad


def test_malformed_messages_change_nothing(tmp_path: Path) -> None:
    bombard(tmp_path, 2_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_malformed_messages_change_nothing(tmp_path: Path) -> None:
    bombard(tmp_path, 100_000)


def test_wild_integers_fail_the_attempt_without_a_name_and_others_are_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation = make(tmp_path, 7, RoundPolicy(clients=3, quorum=2))

    def answer_wildly(name: str) -> None:
        part = federation.clients[name]._secure
        assert part is not None
        begin = part.begin

        def begun(task: m.Task, estimate: Any) -> bytes:
            found = begin(task, estimate)
            part._values = [part._values[0], *(1 << 50 for _ in part._values[1:])]
            return found

        part.begin = begun  # type: ignore[method-assign]

    first = set(federation.server.open_round(federation.clients, 0.0))
    answer_wildly(min(first))
    result = federation.transport.round()
    assert result.record is None and federation.server.refusals == {(NOBODY, m.INVALID): 1}
    assert "hides whose fault" in caplog.text and min(first) in caplog.text
    # its sum is known: the next one has none of its clients, so that no difference tells of one
    second = federation.transport.round()
    assert second.record is not None and not first & set(second.participants)


def test_a_dealer_of_wrong_shares_is_blamed_and_left_out(tmp_path: Path) -> None:
    federation = make(tmp_path, 5, RoundPolicy(quorum=3))

    def deliver(name: str, data: bytes) -> bytes | None:
        if name == "c2" and federation.server.phase == 1:
            part = federation.clients["c2"]._secure
            assert part is not None and part._sum is not None
            honest, part._sum._mask_key = part._sum._mask_key, crypto.new_key()
            part._sum.stage = 1
            server = sum_of(federation).sum
            keys = [server._keys[other] for other in server.numbers]
            roster = s.pack(s.ROSTER, part._sum.session, *(k.pack() for k in keys))
            data = sealed(part._sum.share(roster), federation)
            part._sum._mask_key = honest
        return None if name == "c2" and federation.server.phase >= 2 else data

    assert federation.transport.round(deliver=deliver).record is None
    assert federation.server.refusals == {("c2", m.INVALID): 1}
    assert federation.transport.round(deliver=deliver).participants == ("c0", "c1", "c3", "c4")


def test_a_dealer_whose_shares_nobody_can_read_is_blamed_not_those_who_cannot(tmp_path: Path) -> None:
    federation = make(tmp_path, 5, RoundPolicy(quorum=3))

    def deliver(name: str, data: bytes) -> bytes | None:
        if name != "c2" or not federation.server.phase:
            return data
        return (
            sealed(inner(data, federation)[:17] + bytes(16 + 5 * 114), federation)
            if federation.server.phase == 1
            else None
        )

    assert federation.transport.round(deliver=deliver).record is None
    assert federation.server.refusals == {("c2", m.INVALID): 1}
    assert federation.transport.round(deliver=deliver).participants == ("c0", "c1", "c3", "c4")


# what is refused from the beginning


@pytest.mark.parametrize(
    "given",
    [
        {"aggregate": "median"},
        {"own_directions": True},
        {
            "weighting": "equal",
            "privacy": {"mode": "central", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "clients": 4},
        },
        {"secure_sum": 1},
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_sums(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="secure_sum"):
        settings(**{"secure_sum": True, **given})
    assert settings() != settings(secure_sum=True)


@pytest.mark.parametrize(
    "policy",
    [
        RoundPolicy(),
        RoundPolicy(clients=1),
        RoundPolicy(clients=4, quorum=2),
        RoundPolicy(clients=2000, quorum=1500),
    ],
    ids=str,
)
def test_rounds_that_would_hide_too_little_are_refused(policy: RoundPolicy, tmp_path: Path) -> None:
    base = worker(9)
    with pytest.raises(ValueError, match="secure sum needs"):
        Server.create(tmp_path / "s.bz", settings(secure_sum=True), base.base_digest, base.layout, policy)
    assert not list(tmp_path.iterdir())


def test_without_cryptography_a_client_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make(tmp_path)
    lacking = Client(worker(7), tmp_path / "new.bz", federation.signers["c0"])
    welcome = federation.server.receive("new", lacking.hello())
    base = worker(9)
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "cryptography", None)
        answer = lacking.handle(welcome)
        assert code_of(answer) == m.MISMATCH and b"pip install 'blockzo[privacy]'" in answer
        federation.server.receive("new", answer)
        assert federation.server.refusals["new", m.MISMATCH] == 1
        with pytest.raises(ImportError, match="pip install"):
            Server.create(tmp_path / "s.bz", federation.settings, base.base_digest, base.layout, federation.policy)
        with pytest.raises(ImportError, match="pip install"):
            federation.restart_client("c0")
    # installed by now, it is welcome
    assert lacking.handle(federation.server.receive("new", lacking.hello())) == b""
