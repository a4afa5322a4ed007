"""How a run ends when it cannot go on: full disks, signals while the model is written, terminals that know ASCII alone."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blockzo.cli import main as cli
from blockzo.finetune import Interrupted, UserError, output
from blockzo.finetune.interrupt import STOPPING, Interrupts, stopped_by_signals
from blockzo.finetune.models.loading import load, save
from tests.finetune.process import REPOSITORY, command, environment

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]


def told(model: Path, rows: Rows, out: Path | str, *more: object) -> list[str]:
    own = ["--task", "custom", "--template", "{text} it was {label}.", "--labels", "0=bad,1=good", "--lr", "1e-3"]
    files = ["--train", rows(40), "--validation", rows(16, "held.tsv")]
    return [
        str(x) for x in ("finetune", "--model", model, *own, *files, "--steps", 2, "--batch", 4, "--output", out, *more)
    ]


def hidden(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_model_of_which_any_file_does_not_fit_is_told_in_words(tiny: Tiny, tmp_path: Path) -> None:
    """Python writes some of the files, Rust others; a limit just below the size of each meets every one of them."""
    loaded = load(str(tiny("llama")), "float32")
    save(loaded, tmp_path / "whole")
    sizes = {path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    assert len(sizes) >= 4
    for size in sorted(sizes):
        with (
            pytest.raises(UserError, match=r"would be larger than this process may write \(ulimit -f\)"),
            largest_file(size - 1),
        ):
            output.write_whole(tmp_path / "model", lambda place: save(loaded, place))
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["whole"], size


def test_errors_that_are_not_the_disk_s_keep_their_traceback(tmp_path: Path) -> None:
    def broken(place: Path) -> None:
        place.mkdir()
        raise TypeError("a defect")

    with pytest.raises(TypeError, match="a defect"):
        output.write_whole(tmp_path / "model", broken)
    assert list(tmp_path.iterdir()) == []


def namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script where it may mount file systems of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    whole = ["unshare", "-rm", "sh", "-ec", textwrap.dedent(script), "sh", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=240, env=environment(), cwd=REPOSITORY)


def test_a_disk_that_is_really_full(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    """It fills up after the first line of metrics; once there is space again the run continues."""
    small = tmp_path / "small"
    small.mkdir()
    script = f"""
    mount -t tmpfs -o size=40m tmpfs {small}
    (while [ ! -f {small}/out/metrics.jsonl ]; do sleep 0.01; done; cat /dev/zero > {small}/filling 2> /dev/null || true) &
    code=0
    "$@" || code=$?
    wait
    rm {small}/filling
    echo "left $code"
    {sys.executable} -m blockzo finetune --resume --output {small}/out --json
    ls -A {small}/out > {tmp_path}/listing
    """
    done = namespace(script, *command(*told(tiny("llama"), rows, small / "out", "--steps", "30")))
    assert done.returncode == 0, done.stderr
    assert "left 2" in done.stdout and "Traceback" not in done.stderr, done.stderr
    assert "space" in done.stderr and "resum" in done.stderr
    assert json.loads(done.stdout.split("left 2")[1])["steps"] == 30
    found = (tmp_path / "listing").read_text().split()
    assert found == ["curve.png", "journal.bz", "metrics.jsonl", "model", "summary.json"]


def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--version"), stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), cwd=REPOSITORY
        )
    assert done.returncode == 2 and done.stderr.startswith("error: No space left on device"), done.stderr
    assert done.stderr.count("\n") == 1


def test_errors_of_the_system_become_sentences(capsys: Any) -> None:
    for error, told_of in (
        (OSError(28, "No space left on device", "a/file"), "error: no space left for a/file"),
        (PermissionError(13, "Permission denied", "a/file"), "error: a/file may not be read or written"),
        (FileNotFoundError(2, "No such file or directory", b"a/file"), "error: a/file: No such file or directory"),
        (IsADirectoryError(21, "Is a directory", "a/file"), "error: a/file: Is a directory"),
    ):

        def action(error: OSError = error) -> None:
            raise error

        with pytest.raises(SystemExit) as end:
            cli.run(action)
        assert end.value.code == 2 and told_of in capsys.readouterr().err


@pytest.fixture
def call(capsys: Any, monkeypatch: Any) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blockzo", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("finetune", number) for number in STOPPING),
        ("simulate", signal.SIGTERM),
        *(pytest.param("simulate", number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_signal_while_the_model_is_written(
    call: Any, tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any, number: signal.Signals, name: str
) -> None:
    out = tmp_path / "out"
    arguments = told(tiny("llama"), rows, out)
    if name == "simulate":
        arguments[0], arguments[arguments.index("--steps")] = "simulate", "--rounds"
        arguments += ["--clients", "3"]

    def stopped(loaded: Any, place: Path) -> None:
        save(loaded, place)
        signal.raise_signal(number)

    # some shells start what runs in the background with these ignored
    before = {
        n: signal.signal(n, signal.default_int_handler if n == signal.SIGINT else signal.SIG_DFL) for n in STOPPING
    }
    try:
        with monkeypatch.context() as patch:
            patch.setattr(f"blockzo.{name}.report.save", stopped)
            code, text, err = call(*arguments, "--json")
        assert [signal.getsignal(n) for n in STOPPING] == [signal.default_int_handler, *[signal.SIG_DFL] * 2]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    again = f"blockzo {name} --resume --output {out}"
    assert code == 130 and again in err and json.loads(text)["resume"] == again
    assert hidden(out) == [] and not (out / "model").exists()
    code, text, err = call(name, "--resume", "--output", out, "--json")
    assert code == 0 and (out / "model").is_dir(), err


def test_a_signal_before_a_run_has_begun_leaves_nothing(
    call: Any, tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any
) -> None:
    def stopped(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("blockzo.finetune.run.prepare", stopped)
    code, _, err = call(*told(tiny("llama"), rows, tmp_path / "out"))
    assert code == 130 and "stopped; there is nothing to continue" in err and not (tmp_path / "out").exists()


def test_an_exception_that_a_library_swallows_still_stops() -> None:
    with pytest.raises(Interrupted), Interrupts() as interrupts, interrupts.at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pass


def test_a_lost_terminal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals(), Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupts.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = output._host()
    names = {
        f".model.{here}.{gone.pid}": False,
        f".model.{gone.pid}": False,
        # this process's number, of an earlier life
        f".model.{here}.{os.getpid()}": False,
        f".model.{here}.1": True,
        f".model.elsewhere.{gone.pid}": True,
        f".model.{here}.notes": True,
        f".models.{here}.{gone.pid}": True,
    }
    assert here and socket.gethostname()
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("half")
    output.write_whole(tmp_path / "model", lambda place: place.mkdir())
    found = {entry.name for entry in tmp_path.iterdir()}
    assert found == {"model"} | {name for name, kept in names.items() if kept}
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow)],
    ids=["ascii terminal", "C locale"],
)
def test_a_path_that_the_terminal_cannot_show(
    tiny: Tiny, rows: Rows, tmp_path: Path, variables: dict[str, str]
) -> None:
    out = tmp_path / "Zürich-東京"
    done = subprocess.run(
        command(*told(tiny("llama"), rows, out)),
        env=environment() | variables,
        cwd=REPOSITORY,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert b"rich-" in done.stdout and b"Traceback" not in done.stderr and (out / "summary.json").is_file()
    again = subprocess.run(
        command("replay", tiny("llama"), out / "journal.bz", tmp_path / "wieder-é"),
        env=environment() | variables,
        cwd=REPOSITORY,
        capture_output=True,
        timeout=240,
    )
    assert again.returncode == 0 and b"verified" in again.stdout, again.stderr
