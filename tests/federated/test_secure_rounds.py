"""Rounds over secure sums: the record of a plain run but for rounding, whoever drops out and when, is killed or restarted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.settings import RoundPolicy
from tests.federated.problem import Federation, settings, spoil, weights_of
from tests.federated.secure_problem import (
    PHASES,
    code_of,
    coefficients,
    inner,
    losing,
    make,
    sum_of,
)


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
    spoil(federation.clients["c2"])
    result = federation.transport.round()
    # with a replica it is told in time; a vote is counted when all have advertised
    assert result.participants == (("c0", "c1", "c2", "c3") if replica else ("c0", "c1", "c3"))
    assert federation.server.refusals == {("c2", m.DIVERGED): 1}
    federation.run()
    assert federation.server.refusals.total() == 1
    digests = federation.catch_up()
    assert len(digests) == 1
    if replica:
        # what it found on the wrong weights is not in the sum
        quiet = make(tmp_path / "quiet")
        quiet.run()
        assert quiet.catch_up() == digests


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
    federation = make(tmp_path, 7, RoundPolicy(quorum=4))
    lost = {"c0": 0, "c1": 1, "c2": 2, "c3": 3}
    result = federation.transport.round(deliver=losing(federation, lost))
    # six have advertised, so that four are needed to the end; c3 is in, but gives no shares
    assert result.record is None and result.participants == ()
    del lost["c3"]
    assert federation.transport.round(deliver=losing(federation, lost)).participants == ("c3", "c4", "c5", "c6")


def test_a_round_does_not_wait_for_ever_for_others_than_those_of_a_failed_sum(tmp_path: Path) -> None:
    """The first attempt fails when its sum is nearly known; the others that are asked next never answer."""
    federation = make(tmp_path, 8, RoundPolicy(clients=4, quorum=3))
    first = set(federation.server.open_round(federation.clients, 0.0))
    lost = dict.fromkeys(sorted(first)[:2], 3)
    assert federation.transport.round(deliver=losing(federation, lost)).record is None
    dead = dict.fromkeys(set(federation.clients) - first, 0)
    while federation.server.number == 0:
        federation.transport.round(deliver=losing(federation, dead))
        assert federation.server.attempt < 100


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
    again = federation.transport.round()
    assert (again.number, again.attempt) == (0, 1) and again.record is not None
    assert set(again.participants) != before
    # a sum that late answers could still open has none of the next one's clients
    assert phase < 3 or not before & set(again.participants)
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
    # without its quorum the first attempt ends before anything is unmasked
    assert [body[0] for body in seen].count(s.UNMASK) == 2
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
        assert federation.transport.up[name] - up[name] == 8 * count + 147 * clients + 352
        assert federation.transport.down[name] - down[name] - accepted == 4 * count + 250 * clients + 166
    assert m.sum_bytes(federation.settings, clients) >= 32 + 16 + 114 * clients
