"""Rounds over secure sums: the record of a plain run but for rounding, whoever drops out and when; a sum and no more is known."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockzo.federated import messages as m
from blockzo.federated import sum_crypto
from blockzo.federated import sum_messages as s
from blockzo.federated.client import Client
from blockzo.federated.fixed_point import to_words
from blockzo.federated.open_round import RoundResult
from blockzo.federated.secure_round import NOBODY, SecureRound
from blockzo.federated.server import Server
from blockzo.federated.settings import RoundPolicy
from tests.federated.problem import Federation, settings, weights_of, worker

PHASES = ("advertise", "share", "mask", "unmask")
Deliver = Callable[[str, bytes], bytes | None]


def make(path: Path, clients: int = 4, policy: RoundPolicy | None = None, **given: Any) -> Federation:
    path.mkdir(exist_ok=True)
    chosen = settings(**{"secure_sum": True, **given})
    return Federation(path, clients, chosen, policy or RoundPolicy(quorum=2), given.pop("replica", True))


def losing(federation: Federation, lost: dict[str, int]) -> Deliver:
    """Drops the messages of a client from a phase on."""
    return lambda name, data: None if federation.server.phase >= lost.get(name, 9) else data


def coefficients(result: RoundResult) -> list[float]:
    assert result.record is not None
    return [c for block in result.record.blocks for c in block.coefficients]


def inner(data: bytes, federation: Federation) -> bytes:
    """The sum's own message in a message."""
    message = m.decode(data, federation.server.tag, federation.settings)
    assert isinstance(message, m.SumMessage)
    return message.body


def sum_of(federation: Federation) -> SecureRound:
    found = federation.server._round
    assert found is not None and found.sum is not None
    return found.sum


def sealed(body: bytes, federation: Federation, digest: str | None = None) -> bytes:
    return m.encode(m.SumMessage(body, digest), federation.server.tag)


def code_of(answer: bytes) -> str:
    message = m.decode(answer, None)
    assert isinstance(message, m.Refused) and message.reason
    return message.code


# results


@pytest.mark.parametrize("given", [{}, {"weighting": "equal"}, {"local_steps": 3}], ids=str)
def test_a_round_has_the_record_of_a_plain_one_but_for_rounding(given: dict[str, Any], tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", secure_sum=False, **given).transport.round()
    secure = make(tmp_path / "secure", **given).transport.round()
    assert secure.participants == plain.participants == ("c0", "c1", "c2", "c3")
    weight = 4 if given.get("weighting") == "equal" else plain.examples
    assert secure.examples == weight
    # each of four terms is off by 2^-21, the mean by that over the weight; then the rate, and float32
    for one, other in zip(coefficients(secure), coefficients(plain), strict=True):
        assert abs(one - other) <= 0.05 * 4 * 2**-21 / weight + abs(other) * 2**-23
    assert secure.loss == pytest.approx(plain.loss, abs=4 * 2**-21 + 2e-7)


@pytest.mark.parametrize("given", [{"rounds": 30}, {"rounds": 10, "pool": 32, "rebase": 4}], ids=str)
def test_a_run_ends_at_one_digest_that_masks_do_not_change(given: dict[str, Any], tmp_path: Path) -> None:
    found, moved = [], []
    for name, secure in (("one", True), ("two", True), ("plain", False)):
        federation = make(tmp_path / name, secure_sum=secure, **given)
        federation.run()
        (digest,) = federation.catch_up()
        found.append(digest)
        moved.append(weights_of(federation.clients["c0"]))
        assert not federation.server.refusals
    assert found[0] == found[1] != found[2]
    for name, tensor in moved[0].items():
        torch.testing.assert_close(tensor, moved[2][name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("replica", [True, False])
def test_a_client_whose_weights_differ_is_told_and_repaired(replica: bool, tmp_path: Path) -> None:
    chosen = settings(secure_sum=True)
    federation = Federation(tmp_path, 4, chosen, RoundPolicy(quorum=2), replica)
    federation.transport.round()
    broken = federation.clients["c2"].worker
    with torch.no_grad():
        next(broken.model.parameters()).view(-1)[0] += 1.0  # type: ignore[attr-defined]
    broken.weights._digest = None  # type: ignore[attr-defined]
    result = federation.transport.round()
    # with a replica it is told in time; a vote is counted when all have advertised
    assert result.participants == (("c0", "c1", "c2", "c3") if replica else ("c0", "c1", "c3"))
    assert federation.server.refusals == {("c2", m.DIVERGED): 1}
    federation.run()
    assert federation.server.refusals.total() == 1
    assert len(federation.catch_up()) == 1


# who drops out


@pytest.mark.parametrize("phase", range(4), ids=PHASES)
def test_one_that_drops_out_in_a_phase_is_left_out_or_counts(phase: int, tmp_path: Path) -> None:
    secure = make(tmp_path / "secure")
    result = secure.transport.round(deliver=losing(secure, {"c1": phase}))
    # in the last phase its masked integers are there already
    assert result.participants == (("c0", "c1", "c2", "c3") if phase == 3 else ("c0", "c2", "c3"))
    plain = make(tmp_path / "plain", secure_sum=False)
    wanted = plain.transport.round(deliver=losing(plain, {} if phase == 3 else {"c1": 0}))
    assert coefficients(result) == pytest.approx(coefficients(wanted), rel=1e-6, abs=1e-7)
    secure.run()
    assert len(secure.catch_up()) == 1 and not secure.server.refusals


def test_dropouts_in_all_phases_of_one_round(tmp_path: Path) -> None:
    federation = make(tmp_path, 7)
    lost = {"c0": 0, "c1": 1, "c2": 2, "c3": 3}
    result = federation.transport.round(deliver=losing(federation, lost))
    # six have advertised, so that four are needed to the end; c3 is in, but gives no shares
    assert result.record is None and result.participants == ()
    del lost["c3"]
    assert federation.transport.round(deliver=losing(federation, lost)).participants == ("c3", "c4", "c5", "c6")


@pytest.mark.parametrize("phase", range(4), ids=PHASES)
def test_with_too_few_nothing_is_learned_and_others_are_asked(phase: int, tmp_path: Path) -> None:
    federation = make(tmp_path, 8, RoundPolicy(clients=4, quorum=3))
    asked: list[str] = []

    def deliver(name: str, data: bytes) -> bytes | None:
        asked.append(name)
        first = sorted(set(asked))[:2]
        return None if name in first and federation.server.phase >= phase else data

    result = federation.transport.round(deliver=deliver)
    assert result.record is None and result.participants == ()
    # it never came so far that the server could ask for shares, or got enough of them
    with pytest.raises(s.SumError):
        sum_of(federation).sum.total()
    before = set(asked)
    asked.clear()
    again = federation.transport.round()
    assert (again.number, again.attempt) == (0, 1) and again.record is not None
    assert set(again.participants) != before
    federation.run()
    assert len(federation.catch_up()) == 1


def test_every_attempt_has_a_session_keys_and_masks_of_its_own(tmp_path: Path) -> None:
    federation = make(tmp_path, 3, RoundPolicy(quorum=3))
    seen: list[bytes] = []
    estimates = 0
    estimate = federation.clients["c0"].worker.estimate

    def counted(number: int, slot: int) -> Any:
        nonlocal estimates
        estimates += 1
        return estimate(number, slot)

    federation.clients["c0"].worker.estimate = counted  # type: ignore[method-assign]
    for lost in ({"c2": 2}, {"c1": 3, "c2": 3}, {}):

        def deliver(name: str, data: bytes, lost: dict[str, int] = lost) -> bytes | None:
            if name == "c0":
                seen.append(inner(data, federation))
            return losing(federation, lost)(name, data)

        assert (federation.transport.round(deliver=deliver).record is None) == bool(lost)
    for kind in (s.ADVERTISE, s.MASKED):
        found = [(body[1:17], body[17:]) for body in seen if body[0] == kind]
        assert len(found) == 3 and all(len(set(column)) == 3 for column in zip(*found, strict=True))
    # the work on the data is done once a round
    assert estimates == 1


def test_a_server_that_is_restarted_in_the_middle_asks_anew(tmp_path: Path) -> None:
    federation = make(tmp_path / "run")
    quiet = make(tmp_path / "quiet")
    for number, phase in enumerate((0, 1, 2, 3)):
        messages = federation.server.open_round(federation.clients, 0.0)
        for _ in range(phase + 1):
            answers = {name: federation.clients[name].handle(data) for name, data in messages.items()}
            for name, answer in answers.items():
                federation.server.receive(name, answer)
            messages = federation.server.advance(0.0)
        assert (federation.server.phase, federation.server.ready(0.0)) == (min(phase + 1, 3), phase == 3)
        # the sum may be known; what is not in the journal did not happen
        federation.restart_server()
        assert federation.server.number == number
        # what belongs to the lost sum is refused by both sides
        for name, answer in answers.items():
            assert code_of(federation.server.receive(name, answer)) == m.STALE
        asked = federation.server.open_round(federation.clients, 0.0)
        for name, answer in answers.items():
            assert code_of(federation.server.receive(name, answer)) == m.STALE
            assert m.kind_of(federation.clients[name].handle(asked[name])) == m.SUM
        for name, message in messages.items():
            assert code_of(federation.clients[name].handle(message)) == m.STALE
        federation.transport.join()
        assert federation.transport.round().participants == ("c0", "c1", "c2", "c3")
        quiet.transport.round()
    federation.run()
    quiet.run()
    assert federation.catch_up() == quiet.catch_up()


@pytest.mark.parametrize("phase", range(4), ids=PHASES)
def test_a_client_that_is_killed_drops_out_and_comes_back(phase: int, tmp_path: Path) -> None:
    federation = make(tmp_path)

    def deliver(name: str, data: bytes) -> bytes | None:
        if name == "c1" and federation.server.phase == phase and federation.server.number == 1:
            # its answer is on the way; its keys were in its memory alone
            federation.restart_client("c1")
        return data

    federation.transport.round()
    result = federation.transport.round(deliver=deliver)
    assert result.participants == (("c0", "c1", "c2", "c3") if phase >= 2 else ("c0", "c2", "c3"))
    assert set(federation.server.refusals) <= {("c1", m.STALE)}
    assert federation.transport.round().participants == ("c0", "c1", "c2", "c3")
    federation.run()
    assert len(federation.catch_up()) == 1


def test_every_phase_ends_when_all_answered_or_at_its_deadline(tmp_path: Path) -> None:
    federation = make(tmp_path, 4, RoundPolicy(quorum=2, deadline=10.0))
    server, now = federation.server, 100.0
    messages = server.open_round(federation.clients, now)
    for late in ("c3", "", "c2", ""):
        for name, message in messages.items():
            assert server.advance(now + 9.9) == {} and not server.ready(now + 9.9)
            if name != late:
                server.receive(name, federation.clients[name].handle(message))
        if late:
            assert server.advance(now + 9.9) == {} and not server.ready(now + 9.9)
            # the next phase has a time of its own
            now += 10.0
        messages = server.advance(now)
        assert late not in messages
    assert server.ready(now) and server.close_round().participants == ("c0", "c1")


# what is seen


def words(values: list[int]) -> set[bytes]:
    return {struct.pack("<Q", word) for word in to_words(values)}


@pytest.mark.parametrize("secure", [True, False])
def test_no_value_of_a_client_reaches_the_server(secure: bool, tmp_path: Path) -> None:
    """All bytes that clients send, for every value in every form that travels; a plain run is where they are found."""
    federation = make(tmp_path, 3, secure_sum=secure)
    sent: list[bytes] = []
    values: list[float] = []
    for client in federation.clients.values():
        estimate = client.worker.estimate

        def noted(number: int, slot: int, estimate: Any = estimate) -> Any:
            found = estimate(number, slot)
            values.extend((found.loss, *found.scalars, found.loss * found.examples))
            values.extend(scalar * found.examples for scalar in found.scalars)
            return found

        client.worker.estimate = noted  # type: ignore[method-assign]
    federation.transport.round(deliver=lambda name, data: sent.append(data) or data)  # type: ignore[func-returns-value]
    forms = {struct.pack("<f", v) for v in values} | words([round(v * (1 << 20)) for v in values])
    assert any(form in data for form in forms for data in sent) != secure


def test_what_the_server_holds_does_not_unmask_one_client(tmp_path: Path) -> None:
    """From all it got it can take a survivor's own mask, or a late client's pair masks, never both."""
    federation = make(tmp_path, 4)
    late: dict[str, bytes] = {}
    kept: dict[str, Any] = {}

    def deliver(name: str, data: bytes) -> bytes | None:
        kept["sum"] = sum_of(federation).sum
        if name == "c3" and federation.server.phase == 2:
            late[name] = inner(data, federation)[17:]
            return None
        return data

    # secrets of the clients, that the server does not have; with them the check below finds the values
    parts = {name: client._secure for name, client in federation.clients.items()}
    for part in parts.values():
        begin = part.begin  # type: ignore[union-attr]

        def begun(task: Any, estimate: Any, part: Any = part, begin: Any = begin) -> bytes:
            answer = begin(task, estimate)
            part.test_sum, part.test_values = part._sum, part._values
            return bytes(answer)

        part.begin = begun  # type: ignore[union-attr, method-assign]
    assert federation.transport.round(deliver=deliver).participants == ("c0", "c1", "c2")
    server = kept["sum"]
    masked = {name: server._masked[number] for name, number in server.numbers.items() if number in server._masked}
    masked["c3"] = np.frombuffer(late["c3"], dtype="<u8").astype(np.uint64)

    def pairs(name: str, key: Any) -> Any:
        total = np.zeros(server.length, dtype=np.uint64)
        for other, number in server.numbers.items():
            if other != name:
                shared = sum_crypto.agreed(key, server._keys[other].mask, server.session, b"mask")
                mask = sum_crypto.stream(shared, server.length)
                total = total + mask if number > server.numbers[name] else total - mask
        return total

    for name, part in parts.items():
        values = np.array(to_words(part.test_values), dtype=np.uint64)  # type: ignore[union-attr]
        secrets = part.test_sum  # type: ignore[union-attr]
        recovered = server._recovered(server.numbers[name])
        if name == "c3":
            left = masked[name] - pairs(name, sum_crypto.key_from(recovered))
            whole = left - sum_crypto.stream(secrets._seed, server.length)
        else:
            left = masked[name] - sum_crypto.stream(recovered, server.length)
            whole = left - pairs(name, secrets._mask_key)
        assert (whole == values).all()
        assert not (left == values).any()


def test_secrets_of_a_sum_are_not_on_disk(tmp_path: Path) -> None:
    federation = make(tmp_path)
    found = 0

    def deliver(name: str, data: bytes) -> bytes | None:
        nonlocal found
        part = federation.clients[name]._secure
        current = part._sum if part is not None else None
        if current is not None:
            found += 1
            secrets = (current._seed, current._mask_key.private_bytes_raw(), current._channel.private_bytes_raw())
            for path in tmp_path.rglob("*"):
                assert not any(secret in path.read_bytes() for secret in secrets if path.is_file())
        return data

    federation.transport.round(deliver=deliver)
    assert found == 3 * 4
    # nor are they kept when the sum is over
    assert all(client._secure._sum is None for client in federation.clients.values())  # type: ignore[union-attr]


# who does not follow the protocol


def opened(federation: Federation, phase: int) -> dict[str, bytes]:
    """A round brought to a phase; the messages that begin it."""
    messages = federation.server.open_round(federation.clients, 0.0)
    for _ in range(phase):
        for name, message in messages.items():
            federation.server.receive(name, federation.clients[name].handle(message))
        messages = federation.server.advance(0.0)
    return messages


def finish(federation: Federation, messages: dict[str, bytes], without: str = "") -> RoundResult:
    while messages:
        for name, message in messages.items():
            if name != without:
                federation.server.receive(name, federation.clients[name].handle(message))
        messages = federation.server.advance(0.0, over=True)
    return federation.server.close_round()


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
        assert sent("c1", body[:17] + bytes(64)) == m.INVALID
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
            honest, part._sum._mask_key = part._sum._mask_key, sum_crypto.new_key()
            part._sum.stage = 1
            server = sum_of(federation).sum
            keys = [server._keys[other] for other in server.numbers]
            roster = s.pack(s.ROSTER, part._sum.session, *(k.channel + k.mask for k in keys))
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


def test_a_client_that_cannot_estimate_tells_no_value(tmp_path: Path) -> None:
    federation = make(tmp_path)

    def huge(number: int, slot: int) -> Any:
        return replace(estimate(number, slot), loss=123456789012.0)

    def failing(number: int, slot: int) -> Any:
        raise ValueError("row 3 says: secret")

    estimate = federation.clients["c1"].worker.estimate
    federation.clients["c1"].worker.estimate = huge  # type: ignore[method-assign]
    federation.clients["c2"].worker.estimate = failing  # type: ignore[method-assign]
    tasks = federation.server.open_round(federation.clients, 0.0)
    for name in ("c1", "c2"):
        answer = federation.clients[name].handle(tasks[name])
        assert code_of(answer) == m.INVALID
        assert b"123" not in answer and b"secret" not in answer
        federation.server.receive(name, answer)
    assert finish(federation, tasks, "c2").participants == ("c0", "c3")


def test_nothing_of_one_client_is_told_in_a_run_with_sums(tmp_path: Path) -> None:
    federation = make(tmp_path)
    with pytest.raises(ValueError, match="held-out scores"):
        federation.server.ask_scores(["c0"])
    client, tag = federation.clients["c0"], federation.server.tag
    for task in (
        m.Task(0, 0, b""),
        m.Task(0, 0, b"", evaluate=True),
        m.Task(0, 0, b"", evaluate=True, nonce=bytes(16)),
    ):
        assert code_of(client.handle(m.encode(task, tag))) == m.INVALID
    plain = make(tmp_path / "plain", secure_sum=False)
    asked = m.encode(m.Task(0, 0, b"", nonce=bytes(16)), plain.server.tag)
    assert code_of(plain.clients["c0"].handle(asked)) == m.INVALID
    body = m.encode(m.SumMessage(bytes(40)), plain.server.tag)
    assert code_of(plain.clients["c0"].handle(body)) == m.INVALID
    assert code_of(plain.server.receive("c0", body)) == m.STALE


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


def test_without_cryptography_a_client_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make(tmp_path)
    lacking = Client(worker(7), tmp_path / "new.bz")
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


# bytes


@pytest.mark.parametrize("clients", [3, 6])
def test_payloads_are_what_the_page_says(clients: int, tmp_path: Path) -> None:
    """docs/federated.md, "Bytes": with K scalars and n clients, a digest, and one missed round of two blocks."""
    federation = make(tmp_path, clients)
    federation.transport.round()
    up, down = federation.transport.up.copy(), federation.transport.down.copy()
    federation.transport.round()
    count, accepted = federation.settings.scalars, 4 * 18
    for name in federation.clients:
        assert federation.transport.up[name] - up[name] == 8 * count + 147 * clients + 256
        assert federation.transport.down[name] - down[name] - accepted == 4 * count + 154 * clients + 166
    assert m.sum_bytes(federation.settings, clients) >= 32 + 16 + 114 * clients
