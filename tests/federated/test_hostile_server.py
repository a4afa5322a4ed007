"""A server is no less hostile than a client: what it says of snapshots and of other runs moves nothing here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy
from tests.federated.problem import Federation, settings

DIGEST = "bz1-" + "0" * 64


def state_of(federation: Federation, name: str) -> tuple[str, int, bytes]:
    client = federation.clients[name]
    return client.worker.digest(), client.position, (federation.folder / f"{name}.bz").read_bytes()


@pytest.fixture
def begun(tmp_path: Path) -> Federation:
    federation = Federation(tmp_path, chosen=settings(rounds=20), policy=RoundPolicy(snapshot_every=4))
    for _ in range(3):
        federation.transport.round()
    return federation


@pytest.mark.parametrize("tag", [m.NO_TAG, b"12345678"], ids=["none", "foreign"])
def test_a_refusal_of_another_run_wipes_nothing(begun: Federation, tag: bytes) -> None:
    client, before = begun.clients["c0"], state_of(begun, "c0")
    assert client.handle(m.encode(m.Refused(m.DIVERGED, "begin again"), tag)) == b""
    assert state_of(begun, "c0") == before and before[1] > 0
    # its own run's word counts
    answer = client.handle(m.encode(m.Refused(m.DIVERGED, "begin again"), client.tag))
    assert isinstance(m.decode(answer, client.tag, client.settings), m.CatchUp) and client.position == 0


def hostile(snapshot: dict[str, Any], first: int = 9) -> m.Records:
    return m.Records(first, 0, b"", True, snapshot)


def sent(federation: Federation, message: m.Records) -> str:
    client = federation.clients["c0"]
    answer = m.decode(client.handle(m.encode(message, client.tag)), client.tag, client.settings)
    assert isinstance(answer, m.Refused), answer
    return answer.reason


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        ({"round": 9, "digest": DIGEST, "path": "/etc/passwd"}, "cannot be read from this client"),
        ({"round": 9, "digest": "../../etc/passwd"}, "expected bz1- and 64"),
        ({"round": 9, "path": "/etc/passwd"}, "expected bz1- and 64"),
        ({"round": 1000, "digest": DIGEST}, "expected the same"),
        ({"digest": DIGEST}, "expected the same"),
    ],
    ids=["path", "traversal", "no digest", "another round", "no round"],
)
def test_a_snapshot_is_a_digest_in_the_clients_own_folder(
    begun: Federation, snapshot: dict[str, Any], words: str
) -> None:
    before = state_of(begun, "c0")
    assert words in sent(begun, hostile(snapshot))
    assert state_of(begun, "c0") == before


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "wrong weights", "no safetensors", "large"])
def test_what_is_no_such_file_is_refused_at_once(begun: Federation, kind: str) -> None:
    path = begun.folder / f"{DIGEST}.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(begun.folder / "c1.bz")
    elif kind == "folder":
        path.mkdir()
    elif kind == "wrong weights":
        begun.clients["c1"].worker.save(path)
    else:
        path.write_bytes(b"\0" * (100 if kind == "no safetensors" else 3 << 20))
    before = state_of(begun, "c0")
    sent(begun, hostile({"round": 9, "digest": DIGEST}))
    assert state_of(begun, "c0") == before
    # and the run goes on
    begun.run()
    assert len(begun.catch_up()) == 1


def test_without_a_folder_of_snapshots_none_is_read(begun: Federation) -> None:
    begun.clients["c0"]._held.folder = None
    assert "name one" in sent(begun, hostile({"round": 9, "digest": DIGEST}))


def test_no_place_of_the_servers_machine_is_told(begun: Federation) -> None:
    for _ in range(12):
        begun.transport.round()
    message = begun.server.history.catch_up(0)
    assert message.snapshot is not None and set(message.snapshot) == {"run", "round", "digest", "bytes"}
