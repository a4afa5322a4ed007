"""The worker of a node: who may talk to it, when it ends, and that it goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockzo.federated.flower import envelope, tiny, wire
from blockzo.federated.flower.places import private_folder, socket_folder
from blockzo.federated.flower.shim import Shim, WorkerError, client_name
from blockzo.federated.protocol import messages as m
from blockzo.federated.server.server import Server
from tests.flower.conftest import CONFIG, RUN, gone

# starts a process a test
pytestmark = pytest.mark.heavy


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the node."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def make_shim(owner: subprocess.Popen[bytes], **node: Any) -> Shim:
    return Shim({"partition-id": 0, **node}, {}, RUN, owner.pid)


def pid_of(shim: Shim) -> int:
    about, _ = shim.ask([envelope.INTRODUCE])
    return int(json.loads(about)["pid"])


def test_socket_and_token_are_the_users_alone(owner: subprocess.Popen[bytes]) -> None:
    shim = make_shim(owner)
    shim.ask([envelope.INTRODUCE])
    assert stat.S_IMODE(os.stat(shim.folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(shim.folder.parent).st_mode) == 0o700
    for name in ("socket", "token"):
        assert stat.S_IMODE(os.stat(shim.folder / name).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(shim.state).st_mode) == 0o700

    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(shim.folder / "socket"))
        wire.send_request(stranger, bytes(wire.TOKEN_BYTES), bytes(wire.DIGEST_BYTES), b"")
        assert wire.read_answer(stranger) == (wire.REFUSED, b"")
    with socket.socket(socket.AF_UNIX) as vandal:
        vandal.connect(str(shim.folder / "socket"))
        vandal.sendall(b"half a tok")
    # it still serves who knows the token
    assert len(shim.ask([envelope.INTRODUCE])[1]) == 1


def test_folders_that_others_may_enter_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    with pytest.raises(PermissionError, match="expected a folder of user"):
        private_folder(open_to_all)
    link = tmp_path / "link"
    link.symlink_to(private_folder(tmp_path / "mine"))
    with pytest.raises(PermissionError, match="expected a folder of user"):
        private_folder(link)
    others = Path(os.environ["BLOCKZO_RUNTIME"], f"blockzo-{os.getuid()}")
    others.mkdir()
    others.chmod(0o777)
    with pytest.raises(PermissionError, match="BLOCKZO_RUNTIME"):
        socket_folder(tmp_path / "state")
    deep = tmp_path / ("d" * 90)
    monkeypatch.setenv("BLOCKZO_RUNTIME", str(deep))
    with pytest.raises(ValueError, match="at most: set BLOCKZO_RUNTIME to a shorter folder"):
        socket_folder(tmp_path / "state")
    assert not deep.exists()


def test_it_ends_with_its_node(owner: subprocess.Popen[bytes]) -> None:
    pid = pid_of(make_shim(owner))
    assert not gone(pid, 0.3)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert gone(pid)


def test_it_ends_when_idle(owner: subprocess.Popen[bytes]) -> None:
    assert gone(pid_of(make_shim(owner, **{"idle-seconds": 0.5})))


def test_it_keeps_the_model_and_a_killed_one_goes_on_from_its_journal(
    owner: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    plan = tiny.plan({**CONFIG, "clients": 1})
    server = Server.create(
        tmp_path / "journal", plan.settings, plan.base_digest, plan.layout, plan.policy, plan.replica
    )
    shim = make_shim(owner)
    first = pid_of(shim)
    # Flower's own shape: welcome and task in one message
    [hello] = shim.ask([envelope.INTRODUCE])[1]
    queue = [server.receive("client-0", hello)]
    for _ in range(3):
        task = server.open_round(["client-0"], 0.0)["client-0"]
        *_, reply = shim.ask([*queue, task])[1]
        assert m.kind_of(server.receive("client-0", reply)) == m.ACCEPTED
        server.close_round()
        queue = []
    assert pid_of(shim) == first

    os.kill(first, signal.SIGKILL)
    assert gone(first)
    about = json.loads(shim.ask([envelope.INTRODUCE])[0])
    # the third round's record has not been sent to it yet
    assert about["position"] == 2 and about["pid"] != first
    answer = server.receive("client-0", m.encode(m.CatchUp(2), server.tag))
    about = json.loads(shim.ask([answer, envelope.INTRODUCE])[0])
    assert plan.replica is not None
    assert about["digest"] == plan.replica.digest()
    server.close()


def test_another_configuration_gets_another_worker(owner: subprocess.Popen[bytes]) -> None:
    first = pid_of(make_shim(owner))
    second = pid_of(make_shim(owner, seed=1))
    assert second != first and gone(first)


def test_a_factory_that_fails_is_named(owner: subprocess.Popen[bytes]) -> None:
    with pytest.raises(WorkerError, match="no_such_module"):
        make_shim(owner, factory="no_such_module:worker").ask([envelope.INTRODUCE])


def test_names_cannot_leave_their_folder(owner: subprocess.Popen[bytes]) -> None:
    assert client_name({"partition-id": 3}) == "client-3"
    for name in ("../x", "a/b", ".hidden", "x" * 65):
        with pytest.raises(ValueError, match="letters"):
            client_name({"name": name})
    with pytest.raises(ValueError, match="letters"):
        Shim({}, {}, "../../run", owner.pid)


def test_the_shim_needs_no_torch() -> None:
    code = (
        "import sys, blockzo.federated.flower.client_app as c; c.client_app(); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
