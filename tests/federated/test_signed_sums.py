"""Long-term keys in secure sums: a server cannot invent clients, replay, swap or repeat keys, or make the sum small."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from blockzo.federated.client.client import Client
from blockzo.federated.flower.shim import signing_files
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.federated.protocol.sum_messages import Keys
from blockzo.federated.secagg.sum_client import SumClient, read_roster
from blockzo.federated.secagg.sum_server import SumServer
from blockzo.federated.signing import (
    Roster,
    Signer,
    fingerprint,
    make_key,
    make_roster,
    new_signers,
    roster_line,
)
from blockzo.federated.sums import SumError
from tests.federated.problem import worker
from tests.federated.secure_problem import code_of, inner, make, opened, sealed

TAG, LENGTH = b"12345678", 3
NAMES = ["c0", "c1", "c2", "c3"]
SIGNERS = new_signers(NAMES)


def address(number: int = 3) -> tuple[bytes, bytes]:
    return s.session_of(TAG, number), s.address_of(TAG, number, 0)


def client(name: str, number: int = 3, least: int = 2) -> SumClient:
    session, where = address(number)
    return SumClient(session, LENGTH, replace(SIGNERS[name], least=least), where)


def roster_of(*clients: SumClient) -> list[Keys]:
    return [read_roster(one.advertise()[17:] * 2, True)[0] for one in clients]


def packed(entries: list[Keys], number: int = 3) -> bytes:
    return s.pack(s.ROSTER, address(number)[0], *(keys.pack() for keys in entries))


def invented() -> Keys:
    """A client that the server made up, with keys of its own that it signs itself."""
    stranger = new_signers(["c1", "x"])["c1"]
    return SumClient(address()[0], LENGTH, stranger, address()[1]).keys


def swapped(entries: list[Keys]) -> list[Keys]:
    own = SumClient(address()[0], LENGTH).keys
    return [entries[0], replace(entries[1], mask=own.mask, channel=own.channel), *entries[2:]]


ATTACKS: dict[str, tuple[Callable[[list[Keys]], list[Keys]], str]] = {
    "invented": (lambda e: [*e, invented()], "not in this client's roster"),
    "invented under a known key": (
        lambda e: [*e[:3], replace(invented(), public=SIGNERS["c3"].public)],
        "'c3', did not sign",
    ),
    "swapped": (swapped, "'c1', did not sign"),
    "only the mask swapped": (
        lambda e: [e[0], replace(e[1], mask=SumClient(address()[0], LENGTH).keys.mask), *e[2:]],
        "'c1', did not sign",
    ),
    "replayed": (lambda e: [*e[:3], roster_of(client("c3", number=2))[0]], "'c3', did not sign"),
    "unsigned": (lambda e: [*e[:3], replace(e[3], signature=bytes(64))], "'c3', did not sign"),
    "one key for two": (lambda e: [*e[:3], roster_of(client("c2"))[0]], "twice"),
    "the same twice": (lambda e: [*e, e[1]], "twice"),
    "too few": (lambda e: e[:2], "2 clients are in the roster; this client takes part with 3 or more"),
    "without it": (lambda e: e[1:], "does not hold this client's keys"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_client_refuses_rosters_that_a_server_made_up(attack: str) -> None:
    clients = [client(name, least=3) for name in NAMES]
    entries = roster_of(*clients)
    change, reason = ATTACKS[attack]
    with pytest.raises(SumError, match=reason):
        clients[0].share(packed(change(entries)))
    # the honest one it takes
    honest = [client(name, least=3) for name in NAMES]
    assert honest[0].share(packed(roster_of(*honest)))[0] == s.SHARES


@given(st.data())
@hypothesis_settings(max_examples=150, deadline=None)
def test_whatever_a_server_makes_of_a_roster(data: st.DataObject) -> None:
    """Entries of this sum and others, strangers, parts of one put into another, flipped bits: a client that goes on does so with
    three or more entries that their owners made for this sum, its own among them."""
    clients = [client(name, least=3) for name in NAMES]
    honest = roster_of(*clients)
    stock = [
        *honest,
        *(roster_of(client(name, number=2))[0] for name in NAMES[1:]),
        invented(),
        roster_of(client("c1"))[0],
    ]
    entries = []
    for _ in range(data.draw(st.integers(0, 6))):
        one, other = (data.draw(st.sampled_from(stock)) for _ in range(2))
        fields = data.draw(st.sets(st.sampled_from(["channel", "mask", "public", "signature"]), max_size=1))
        entries.append(replace(one, **{name: getattr(other, name) for name in fields}))
    if data.draw(st.booleans()):
        entries = data.draw(st.permutations(honest[: data.draw(st.integers(1, 4))]))
    payload = bytearray(b"".join(keys.pack() for keys in entries))
    if payload and data.draw(st.integers(0, 2)) == 0:
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        clients[0].share(s.pack(s.ROSTER, address()[0], bytes(payload)))
    except SumError:
        return
    taken = read_roster(bytes(payload), True)
    # the second keys of c1 are its own too, should it have begun this sum twice
    assert {keys.public for keys in taken} <= {keys.public for keys in honest} and len(taken) >= 3
    assert all(keys in (*honest, stock[-1]) for keys in taken) and honest[0] in taken
    assert len({keys.public for keys in taken}) == len(taken)


@pytest.mark.parametrize("change", ["round", "attempt", "run", "session", "phase", "client"])
def test_a_signature_holds_for_one_run_round_attempt_session_phase_and_client(change: str) -> None:
    session, where = address()
    keys = client("c1").keys
    other = {
        "run": (b"other678" + where[8:], session),
        "round": (s.address_of(TAG, 4, 0), session),
        "attempt": (s.address_of(TAG, 3, 1), session),
        "session": (where, bytes(16)),
    }.get(change, (where, session))
    statement = keys.statement(*other)
    if change == "phase":
        statement = statement.replace(session + bytes((s.ADVERTISE,)), session + bytes((s.SHARES,)))
    if change == "client":
        statement = replace(keys, public=SIGNERS["c2"].public).statement(*other)
    assert statement != keys.statement(where, session)
    forged = replace(keys, signature=SIGNERS["c1"].sign(statement))
    clients = [client("c0"), client("c2")]
    with pytest.raises(SumError, match="'c1', did not sign"):
        clients[0].share(packed([*roster_of(*clients), forged]))


def run_to(phase: int, least: int) -> tuple[SumServer, dict[str, SumClient], dict[str, bytes]]:
    session, where = address()
    server = SumServer(session, LENGTH, True, where)
    clients = {name: client(name, least=least) for name in NAMES}
    for name, one in clients.items():
        server.advertised(name, one.advertise())
    sent = server.roster()
    if phase > 1:
        for name in NAMES:
            server.dealt(name, clients[name].share(sent[name]))
        sent = server.deliveries()
    if phase > 2:
        for name in NAMES:
            server.masked(name, clients[name].mask(sent[name], [1, 2, 3]))
        sent = server.survivors()
    return server, clients, sent


def test_fewer_than_a_client_wants_in_any_phase() -> None:
    _, clients, sent = run_to(2, least=4)
    with pytest.raises(SumError, match="3 clients dealt shares; this client takes part with 4"):
        clients["c0"].mask(sent["c0"][: -(4 + s.CIPHER)], [0] * LENGTH)
    _, clients, sent = run_to(3, least=4)
    with pytest.raises(SumError, match="3 clients are in the sum"):
        clients["c0"].unmask(sent["c0"][:-4])
    server, clients, sent = run_to(3, least=4)
    for name in NAMES:
        server.unmasked(name, clients[name].unmask(sent[name]))
    assert server.total() == [4, 8, 12]


def test_clients_that_were_given_different_rosters_share_nothing() -> None:
    """A server that shows c3 to some and not to c0: c0 reads no share of theirs, and its masks are not theirs."""
    server, clients, sent = run_to(1, least=3)
    less = sent["c0"][: -Keys.size(True)]
    for name in NAMES[1:]:
        server.dealt(name, clients[name].share(sent[name]))
    deal = clients["c0"].share(less)
    server.dealt("c0", deal + deal[-(2 * s.COMMITMENT + s.CIPHER) :])
    sent = server.deliveries()
    one = clients["c0"]
    one.mask(sent["c0"][: -(4 + s.CIPHER)], [1, 2, 3])
    assert set(one._held) == {1}
    clients["c1"].mask(sent["c1"], [1, 2, 3])
    assert set(clients["c1"]._held) == {2, 3, 4}
    assert one._bound != clients["c1"]._bound == server.bound


# in rounds


def test_the_server_refuses_keys_that_would_spoil_the_sum_for_all(tmp_path: Path) -> None:
    keys = [make_key(tmp_path / "keys", name) for name in ("c0", "c1", "c2")]
    roster = make_roster(tmp_path / "roster", keys)
    federation = make(tmp_path / "run", 4, RoundPolicy(quorum=3, roster=str(roster)))
    for name, key in zip(federation.clients, keys, strict=False):
        federation.clients[name]._secure.signer = Signer.load(key, roster, 3)  # type: ignore[union-attr]
    # c3 has a key that the others do not know
    result = federation.transport.round()
    assert result.participants == ("c0", "c1", "c2") and federation.server.refusals == {("c3", m.INVALID): 1}
    messages = opened(federation, 0)
    good = {name: federation.clients[name].handle(message) for name, message in messages.items()}
    digest = federation.server.journal.base_digest
    for name, data in (("c1", inner(good["c0"], federation)), ("c2", inner(good["c2"], federation)[:-1] + b"\0")):
        assert code_of(federation.server.receive(name, sealed(data, federation, digest))) in (m.INVALID, m.DIVERGED)


def test_runs_and_clients_that_do_not_go_together_are_told_what_to_do(tmp_path: Path) -> None:
    signed = make(tmp_path / "signed")
    assert signed.settings.signed_sum and not make(tmp_path / "plain", secure_sum=False).settings.signed_sum
    for federation, signer, words in (
        (signed, None, b"python -m blockzo.federated.signing"),
        (make(tmp_path / "unsigned", secure_sum="unsigned"), SIGNERS["c0"], b"takes part in signed ones"),
    ):
        lacking = Client(worker(7), federation.folder / "new.bz", signer)
        answer = lacking.handle(federation.server.receive("new", lacking.hello()))
        assert code_of(answer) == m.MISMATCH and words in answer
    # without keys it is told in the settings
    unsigned = make(tmp_path / "other", secure_sum="unsigned")
    unsigned.run()
    assert len(unsigned.catch_up()) == 1 and not unsigned.signers


def test_the_first_form_is_refused_in_words(tmp_path: Path) -> None:
    federation = make(tmp_path)
    messages = opened(federation, 1)
    old = sealed(b"\x02" + inner(messages["c0"], federation)[1:], federation)
    answer = federation.clients["c0"].handle(old)
    assert code_of(answer) == m.INVALID and b"first form" in answer
    answer = federation.server.receive("c0", sealed(b"\x01" + bytes(80), federation))
    assert code_of(answer) == m.INVALID and b"same version of blockzo" in answer


# files


def test_keys_are_made_by_one_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "blockzo.federated.signing", str(tmp_path / "keys"), "a", "b"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == lines
    (tmp_path / "roster").write_text(f"# all clients\n\n{lines}")
    key = tmp_path / "keys" / "a.signing"
    signer = Signer.load(key, tmp_path / "roster")
    assert list(signer.roster.names.values()) == ["a", "b"] and signer.public in signer.roster.names
    assert os.stat(key).st_mode & 0o777 == 0o600
    shown = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True) if has_ssh() else None
    assert shown is None or fingerprint(signer.public) in shown.stdout
    refused = subprocess.run([*command[:-2], "../x"], capture_output=True, text=True)
    assert refused.returncode == 2 and "expected letters" in refused.stderr


def has_ssh() -> bool:
    return any((Path(folder) / "ssh-keygen").exists() for folder in os.environ["PATH"].split(os.pathsep))


def test_files_that_are_wrong_are_told(tmp_path: Path) -> None:
    key, other = make_key(tmp_path, "a"), make_key(tmp_path, "b")
    roster = tmp_path / "roster"
    for text, reason in (
        ("", "0 clients"),
        (roster_line(key), "1 clients"),
        (f"{roster_line(key)}\n{roster_line(key)}", "line 2.*twice"),
        (f"{roster_line(key)}\nssh-rsa AAAA b", "line 2.*expected 'ssh-ed25519"),
        (f"{roster_line(key)}\n{roster_line(other).rsplit(' ', 1)[0]}", "line 2.*NAME"),
        (f"{roster_line(key)}\n{roster_line(other)[:40]} b", "line 2"),
    ):
        roster.write_text(text)
        with pytest.raises(ValueError, match=reason):
            Roster.load(roster)
    with pytest.raises(ValueError, match="cannot be read"):
        Roster.load(tmp_path / "none")
    make_roster(roster, [key, other])
    assert Signer.load(key, roster).least == 2
    for least in (1, 3, True):
        with pytest.raises(ValueError, match="expected 2 to 2"):
            Signer.load(key, roster, least)
    with pytest.raises(ValueError, match="own public key"):
        Signer.load(make_key(tmp_path, "c"), roster)
    with pytest.raises(ValueError, match="make one"):
        Signer.load(tmp_path / "none", roster)
    os.chmod(key, 0o644)
    with pytest.raises(ValueError, match="read by others"):
        Signer.load(key, roster)
    os.chmod(key, 0o600)
    key.write_text("x")
    with pytest.raises(ValueError, match="no private key"):
        Signer.load(key, roster)


def test_on_a_node_the_run_has_no_say_in_keys(tmp_path: Path) -> None:
    """They come from the node's own configuration, or from its state folder."""
    assert signing_files({}, tmp_path) is None
    own = {"signing-key": str(tmp_path / "k"), "roster": str(tmp_path / "r"), "least-clients": 5}
    assert signing_files(own, tmp_path / "state") == (str(tmp_path / "k"), str(tmp_path / "r"), 5)
    (tmp_path / "signing-key").touch()
    assert signing_files({}, tmp_path) == (str(tmp_path / "signing-key"), str(tmp_path / "roster"), 2)
