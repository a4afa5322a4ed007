"""The example app on real SuperLinks and SuperNodes: TLS, registered keys, processes that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from blockzo.federated.flower.loopback import Deployment
from blockzo.federated.flower.plan import server_folder
from blockzo.federated.flower.supervise import Supervised
from blockzo.journal.file import Journal
from tests.flower.conftest import APP, CONFIG, RUN_CONFIG, digest_in_process, flower_config, gone

# processes of several hosts, with deadlines
pytestmark = [pytest.mark.timeout(600), pytest.mark.apart]


def check(result: dict[str, Any], expected: str, rounds: int) -> None:
    assert result["digest"] == expected
    assert {name: c["digest"] for name, c in result["clients"].items()} == {"client-0": expected, "client-1": expected}
    assert result["rounds"] == rounds


def journal_of(folder: Path) -> Path:
    return server_folder({"server-state": str(folder / "server"), "run-name": "demo"}) / "journal"


def records_in(path: Path) -> int:
    return len(Journal.open(path)) if path.exists() else 0


def kill(supervised: Supervised) -> None:
    assert supervised.process is not None
    os.kill(supervised.process.pid, signal.SIGKILL)


class Killer(threading.Thread):
    """Kills when the run's journal holds so many records."""

    def __init__(self, folder: Path, records: int, victims: list[Supervised], pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.folder, self.records, self.victims, self.pause = folder, records, victims, pause
        self.killed_at: int | None = None

    def run(self) -> None:
        while records_in(journal_of(self.folder)) < self.records:
            time.sleep(0.1)
        time.sleep(self.pause)
        for victim in self.victims:
            kill(victim)
        self.killed_at = records_in(journal_of(self.folder))


def test_deployment_goes_on_after_its_superlink_was_killed(expected: str, tmp_path: Path) -> None:
    with Deployment(tmp_path, 2) as deployment:
        # SuperExec and ServerApp die with it
        killer = Killer(tmp_path, 1, [deployment.superlink])
        killer.start()
        result = deployment.run(APP, "demo", RUN_CONFIG, 400)
    assert killer.killed_at is not None and killer.killed_at < CONFIG["rounds"]
    # nothing is left of the deployment: the workers ended with their nodes
    assert all(gone(client["pid"]) for client in result["clients"].values())
    assert deployment.superlink.starts == 2 and result["first_round"] == killer.killed_at
    check(result, expected, CONFIG["rounds"])


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_loopback_leaves_no_process(tmp_path: Path, ending: signal.Signals) -> None:
    """Flower's own, the apps', the workers': all that it had started, in whatever session."""
    command = [
        sys.executable,
        "-m",
        "blockzo.federated.flower.loopback",
        str(APP),
        "--nodes",
        "2",
        "--folder",
        str(tmp_path),
    ]
    config = [part for setting in flower_config({**CONFIG, "rounds": 1000}) for part in ("--run-config", setting)]
    loopback = subprocess.Popen([*command, *config], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while records_in(journal_of(tmp_path)) < 2:
            assert loopback.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        ours = [process for process in psutil.process_iter() if _speaks_of(process, tmp_path)]
        assert len(ours) >= 8
    finally:
        loopback.send_signal(ending)
    assert loopback.wait(60) == (-ending if ending == signal.SIGKILL else 128 + ending)
    assert [process.cmdline() for process in ours if not gone(process.pid)] == []


def _speaks_of(process: psutil.Process, folder: Path) -> bool:
    """Does its environment or command name the folder?"""
    try:
        return any(str(folder) in text for text in (*process.environ().values(), *process.cmdline()))
    except psutil.Error:
        return False


def test_secure_sums_over_tls(tmp_path: Path) -> None:
    config = {**CONFIG, "secure-sum": True}
    secure = digest_in_process(tmp_path, config)
    with Deployment(tmp_path, 2) as deployment:
        result = deployment.run(APP, "demo", flower_config(config), 400)
    check(result, secure, CONFIG["rounds"])
    # keys, shares, masked scalars and what unmasks them: docs/federated.md, "Bytes"
    assert all(up > CONFIG["rounds"] * (147 * 2 + 352) for up in result["payload_up"].values())


@pytest.mark.slow
def test_a_killed_node_comes_back(expected: str, tmp_path: Path) -> None:
    with Deployment(tmp_path, 2) as deployment:
        killer = Killer(tmp_path, 1, [deployment.nodes["client-1"]], pause=random.random() * 3)
        killer.start()
        result = deployment.run(APP, "demo", RUN_CONFIG, 300)
    assert killer.killed_at is not None and deployment.nodes["client-1"].starts >= 2
    check(result, expected, CONFIG["rounds"])


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The deployment's live processes: its supervisor, SuperLink, SuperNodes, app processes and workers."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                # killing one that has ended already would be no kill
                if one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
    return found


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_everything_is_killed_again_and_again(tmp_path: Path) -> None:
    """30 kills at random moments: in ten starts of the whole deployment two of its processes, then all of them."""
    config = {**CONFIG, "rounds": 60}
    expected = digest_in_process(tmp_path, config)
    folder = tmp_path / "deployment"
    command = [sys.executable, "-m", "blockzo.federated.flower.loopback", str(APP), "--folder", str(folder)]
    for setting in [*RUN_CONFIG, f"rounds={config['rounds']}", "deadline=20.0"]:
        command += ["--run-config", setting]
    kills, dead = 0, []
    for start in range(10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 240
            # so that the run gets on, every start adds a record at least
            while records_in(journal_of(folder)) <= start:
                assert process.poll() is None and time.monotonic() < end, (start, records_in(journal_of(folder)))
                time.sleep(0.1)
            for _ in range(2):
                time.sleep(random.random() * 3)
                victim = random.choice(family(process)[1:])
                with contextlib.suppress(psutil.NoSuchProcess):
                    dead.append(" ".join(victim.cmdline())[-60:])
                    victim.kill()
                kills += 1
            time.sleep(random.random() * 6)
            assert process.poll() is None
        finally:
            for victim in family(process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            process.wait()
        kills += 1
    begun = records_in(journal_of(folder))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    check(result, expected, config["rounds"])
    assert kills == 30 and result["first_round"] == begun >= 10, dead
