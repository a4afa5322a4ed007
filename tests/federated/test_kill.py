"""kill -9 of the server, of clients, of everything, at random moments: the run ends with the digest of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockzo.federated.signing import make_key, make_roster
from blockzo.journal.file import Journal, JournalError
from tests.federated.processes import CLIENTS, ROUNDS
from tests.warm import Started

# starts and kills processes
pytestmark = pytest.mark.heavy

CLIENT_ROLES: list[tuple[str, ...]] = [("client", str(number)) for number in range(CLIENTS)]


def start(folder: Path, role: tuple[str, ...]) -> Started:
    kind, *rest = role
    words = ["-m", "tests.federated.processes", kind, folder, *rest]
    return Started(words, {**os.environ, "OMP_NUM_THREADS": "1"})


def rounds_of(folder: Path) -> int:
    try:
        return Journal.open(folder / "server.bz").next_step
    except JournalError:
        return 0


def deployment(folder: Path, kills: int, seed: int, *kind: str) -> list[str]:
    """Runs to the end with so many kills on the way; the digests of server and clients. `kind`: "secure" for secure sums."""
    folder.mkdir()
    if kind:
        make_roster(folder / "roster", [make_key(folder, f"c{number}") for number in range(len(CLIENT_ROLES))])
    roles = [("server", *kind), *CLIENT_ROLES]
    chance = random.Random(seed)
    running = {role: start(folder, role) for role in roles}
    try:
        end = time.monotonic() + 280 + 30 * kills
        due = sorted(chance.sample(range(1, ROUNDS - 1), kills))
        while len(list(folder.glob("*.done"))) < len(roles):
            assert time.monotonic() < end, "the run hangs"
            time.sleep(0.01)
            if due and rounds_of(folder) >= due[0]:
                due.pop(0)
                # anywhere within a round
                time.sleep(chance.uniform(0, 0.05))
                victims = chance.choice([roles[:1], [chance.choice(roles[1:])], roles])
                for role in victims:
                    running[role].send_signal(signal.SIGKILL)
                    running[role].wait()
                for role in victims:
                    running[role] = start(folder, role)
            for role, process in running.items():
                if process.poll() not in (None, 0):
                    raise AssertionError(f"{role} ended with {process.returncode}")
        assert not due
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    assert all(path.read_text().split()[0] == str(ROUNDS) for path in folder.glob("c*.done"))
    return sorted({path.read_text().split()[-1] for path in folder.glob("*.done")})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    found = deployment(tmp_path_factory.mktemp("quiet") / "run", 0, 0)
    assert len(found) == 1
    yield found


@pytest.mark.timeout(900)
def test_a_killed_deployment_ends_with_the_same_digest(undisturbed: list[str], tmp_path: Path) -> None:
    assert deployment(tmp_path / "run", 3, 1) == undisturbed


@pytest.fixture(scope="module")
def undisturbed_sums(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    found = deployment(tmp_path_factory.mktemp("quiet") / "run", 0, 0, "secure")
    assert len(found) == 1
    yield found


@pytest.mark.timeout(900)
def test_so_does_one_with_secure_sums(undisturbed: list[str], undisturbed_sums: list[str], tmp_path: Path) -> None:
    assert undisturbed_sums != undisturbed
    assert deployment(tmp_path / "run", 2, 2, "secure") == undisturbed_sums


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(5))
def test_fifteen_kills_in_five_runs_with_secure_sums(seed: int, undisturbed_sums: list[str], tmp_path: Path) -> None:
    assert deployment(tmp_path / "run", 3, 200 + seed, "secure") == undisturbed_sums


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(10))
def test_thirty_kills_in_ten_runs(seed: int, undisturbed: list[str], tmp_path: Path) -> None:
    assert deployment(tmp_path / "run", 3, 100 + seed) == undisturbed
