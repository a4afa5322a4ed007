"""Commands that are kept running, and keys that are made once."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from blockzo.federated.flower import supervise, waits
from blockzo.federated.flower.certificates import node_files, server_files
from blockzo.federated.flower.guard import Guard
from blockzo.federated.flower.supervise import Supervised

# waits against the clock
pytestmark = pytest.mark.apart


def wait_for(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_ends_is_started_again_and_stop_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FIRST_REST", 0.05)
    lines = tmp_path / "lines"
    code = f"import time; open({str(lines)!r}, 'a').write('x'); time.sleep(0 if len(open({str(lines)!r}).read()) < 3 else 60)"
    supervised = Supervised([sys.executable, "-c", code], output=tmp_path / "log").start()
    wait_for(lambda: lines.exists() and lines.read_text() == "xxx")
    supervised.stop()
    assert supervised.starts == 3 and supervised.process is not None and supervised.process.poll() is not None
    time.sleep(0.2)
    assert lines.read_text() == "xxx"


def test_what_a_killed_command_had_started_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FIRST_REST", 60)
    child = tmp_path / "child"
    script = f"sleep 600 & echo $! > {child}.part; mv {child}.part {child}; wait"
    supervised = Supervised(["sh", "-c", script], output=tmp_path / "log").start()
    # the command may run before the thread that started it does
    wait_for(lambda: child.exists() and supervised.process is not None)
    number = int(child.read_text())
    assert supervised.process is not None
    supervised.process.kill()
    wait_for(lambda: not alive(number))
    supervised.stop()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_supervised_ends_with_a_killed_supervisor(tmp_path: Path, ending: signal.Signals) -> None:
    """With all that it had started, from the first moment on."""
    child = tmp_path / "child"
    script = f"sleep 600 & echo $$ $! > {child}.part; mv {child}.part {child}; wait"
    code = f"""
from pathlib import Path
from blockzo.federated.flower.guard import Guard
from blockzo.federated.flower.supervise import Supervised
Supervised(["sh", "-c", {script!r}], output=Path({str(tmp_path / "log")!r})).start().wait()"""
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    wait_for(child.exists)
    numbers = [int(number) for number in child.read_text().split()]
    assert all(map(alive, numbers))
    supervisor.send_signal(ending)
    assert supervisor.wait(20) == -ending
    wait_for(lambda: not any(map(alive, numbers)))


def test_the_command_line_of_supervise_ends_what_it_keeps_running(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"sleep 600 & echo $$ $! > {child}.part; mv {child}.part {child}; wait"
    for ending in (signal.SIGTERM, signal.SIGKILL):
        child.unlink(missing_ok=True)
        module = "blockzo.federated.flower.supervise"
        supervisor = subprocess.Popen([sys.executable, "-m", module, "sh", "-c", script])
        wait_for(child.exists)
        numbers = [int(number) for number in child.read_text().split()]
        supervisor.send_signal(ending)
        assert supervisor.wait(20) == (0 if ending == signal.SIGTERM else -ending)
        wait_for(lambda numbers=numbers: not any(map(alive, numbers)))


def test_a_killed_guard_is_replaced(tmp_path: Path) -> None:
    first = Guard.of_this_process()
    assert Guard.of_this_process() is first
    first.process.kill()
    first.process.wait()
    supervised = Supervised(["sleep", "600"], output=tmp_path / "log").start()
    wait_for(lambda: supervised.starts == 1)
    assert Guard.of_this_process() is not first and Guard.of_this_process().process.poll() is None
    supervised.stop()


def alive(number: int) -> bool:
    """Runs still: what ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_rests_grow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervise, "FIRST_REST", 0.2)
    began = time.monotonic()
    supervised = Supervised([sys.executable, "-S", "-c", ""], output=tmp_path / "log").start()
    wait_for(lambda: supervised.starts == 4)
    supervised.stop()
    assert time.monotonic() - began > 0.2 + 0.4 + 0.8


def test_a_command_that_was_left_running_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)", "left"]
    left = subprocess.Popen(command)
    (tmp_path / "log.pid").write_text(str(left.pid))
    other = Supervised([*command[:-1], "other"], output=tmp_path / "log").start()
    wait_for(lambda: other.starts == 1)
    assert left.poll() is None
    other.stop()
    (tmp_path / "log.pid").write_text(str(left.pid))
    again = Supervised(command, output=tmp_path / "log").start()
    assert left.wait(20) == -9
    again.stop()


def test_keys_are_made_once_and_are_the_users_alone(tmp_path: Path) -> None:
    server, node = (
        server_files(tmp_path / "keys", ["superlink.example", "10.0.0.1"]),
        node_files(tmp_path / "keys", "a"),
    )
    before = [path.read_bytes() for path in (server.key, server.certificate, node.private, node.public)]
    server_files(tmp_path / "keys"), node_files(tmp_path / "keys", "a")
    assert before == [path.read_bytes() for path in (server.key, server.certificate, node.private, node.public)]
    for path in (server.key, node.private):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert node.public.read_text().startswith("ecdsa-sha2-nistp384 ")
    certificate = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(server.authority.read_bytes()))
    # Flower's own processes call the SuperLink by this machine's address
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["superlink.example", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "127.0.0.1"]


def test_content_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower looks for it for more than an hour, and hears of nothing else."""
    from flwr.supercore.inflatable import inflatable_utils

    defaults = inflatable_utils.pull_objects.__kwdefaults__
    for name, value in dict(defaults).items():
        monkeypatch.setitem(defaults, name, value)
    assert waits.bound_waits(0.5)

    def missing(number: str) -> bytes:
        raise inflatable_utils.ObjectUnavailableError(number)

    began = time.monotonic()
    with pytest.raises(inflatable_utils.ObjectPullError, match="timeout"):
        inflatable_utils.pull_objects(["a", "b"], missing)
    assert time.monotonic() - began < 10
    # as server and nodes are started: the code that calls it has the same function
    from flwr.superlink.grid import http_grid
    from flwr.supernode import start_client_internal

    assert http_grid.pull_objects is start_client_internal.pull_objects is inflatable_utils.pull_objects
    command = Supervised(["flower-supernode", "--help"]).command
    assert command[1:] == ["-m", "blockzo.federated.flower.waits", "flower-supernode", "--help"]
    assert "--superlink" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
