"""What the fast selection and the workers get."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.packaging.builds import ROOT, Result, execute

SHORT = """
import pytest
@pytest.mark.parametrize("case", [1, 2, 3])
def test_short(case): pass
def test_unknown(): pass
@pytest.mark.apart
def test_apart(): pass
@pytest.mark.heavy
def test_heavy(): pass
"""
LONG = """
import pytest, subprocess, sys
BURN = "import time; end = time.process_time() + 0.7\\nwhile time.process_time() < end: pass"
@pytest.fixture(scope="module")
def shared(): subprocess.run([sys.executable, "-c", BURN], check=True)
def test_first(shared): pass
def test_second(shared): pass
def test_without(): pass
"""
INI = "[pytest]\nmarkers =\n apart: with no other test beside it\n heavy: of compilers\naddopts = -v\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tmp_path / "pytest.ini").write_text(INI)
    (tests / "test_a.py").write_text(SHORT)
    (tests / "test_b.py").write_text(LONG)
    return tmp_path


def run_tests(folder: Path, *options: str) -> Result:
    command = [sys.executable, "-m", "pytest", "-p", "tests.pace", *options, "tests"]
    return execute(command, folder, PYTHONPATH=str(ROOT), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def names(result: Result) -> list[str]:
    assert result.returncode == 0, result.stdout
    found = [line.split("::")[1].split(" ")[0] for line in result.stdout.splitlines() if "PASSED" in line]
    return [name.strip() for name in found]


@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n", "2"]], ids=["here", "workers"])
def test_the_record_holds_what_each_function_needs(folder: Path, workers: list[str]) -> None:
    run_tests(folder, "--record-durations", *workers)
    record = json.loads((folder / "tests" / "durations.json").read_text())
    # either of the two alone would pay for the fixture
    assert set(record) == {"tests/test_b.py::test_first", "tests/test_b.py::test_second"}
    assert all(alone >= 0.7 for alone, _ in record.values())


def test_the_fast_selection(folder: Path) -> None:
    record = {f"tests/test_b.py::{name}": [0.7, 0.7] for name in ("test_first", "test_second")}
    (folder / "tests" / "durations.json").write_text(json.dumps(record))
    assert names(run_tests(folder, "--fast")) == ["test_short[1]", "test_unknown", "test_without"]


def test_tests_apart(folder: Path) -> None:
    # files without such a test are not even imported
    (folder / "tests" / "test_b.py").write_text("raise ImportError")
    assert names(run_tests(folder, "--apart=only")) == ["test_apart"]
    (folder / "tests" / "test_b.py").write_text(LONG)
    others = names(run_tests(folder, "--apart=without"))
    assert len(others) == 8 and "test_apart" not in others


@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n", "2"]], ids=["here", "workers"])
def test_ctrl_c_ends_what_a_script_started_in_the_background(folder: Path, workers: list[str]) -> None:
    (folder / "tests" / "test_a.py").write_text(
        "import os, signal, time\ndef test(): os.killpg(0, signal.SIGINT); time.sleep(60)"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.pace", *workers, "tests/test_a.py"]
    ignoring = "import os, signal, sys; os.setsid(); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    ignoring += "os.execv(sys.argv[1], sys.argv[1:])"
    done = execute(
        [sys.executable, "-c", ignoring, *command], folder, PYTHONPATH=str(ROOT), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert done.returncode == 2 and "KeyboardInterrupt" in done.stdout, done.stdout
