"""benchmarks/gpu_check.sh with an interpreter that only notes what it is asked: a part that fails costs no other its results."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["bits", "linear", "step", "moves", "choice", "products", "replay"]
STUB = """#!/usr/bin/env bash
case "$*" in
*get_device_capability*) echo 90 ;;
*"$BROKEN"*) echo "this is broken" >&2; exit 3 ;;
*) echo "ran $*" ;;
esac
"""


def check(tmp_path: Path, what: str, broken: str) -> tuple[int, dict[str, str], str]:
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(STUB)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(out), "BROKEN": broken}
    command = ["bash", str(ROOT / "benchmarks" / "gpu_check.sh"), what]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    lines = (out / "parts.txt").read_text().splitlines() if (out / "parts.txt").is_file() else []
    ended = dict(line.split(": ", 1) for line in lines)
    return result.returncode, ended, "".join(path.read_text() for path in sorted(out.glob("*.txt")))


@pytest.mark.parametrize("broken", ["nothing", *PARTS])
def test_measure(broken: str, tmp_path: Path) -> None:
    status, ended, text = check(tmp_path, "measure", f"--only {broken}")
    assert list(ended) == PARTS == list(gpu.PARTS)
    assert status == (broken != "nothing")
    for part in PARTS:
        assert ended[part].startswith("status 3" if part == broken else "status 0"), part
        assert (f"gpu.py --only {part} --csv" in text) is (part != broken)


@pytest.mark.parametrize("broken", ["nothing", "setup.py", "tests/cuda"])
def test_test(broken: str, tmp_path: Path) -> None:
    status, ended, text = check(tmp_path, "test", broken)
    assert list(ended) == ["machine", "build", "tests"]
    assert [ended[part].startswith("status 3") for part in ended] == [
        False,
        broken == "setup.py",
        broken == "tests/cuda",
    ]
    assert status == (broken != "nothing") and "BLOCKZO" not in text


def test_a_machine_that_lacks_something_is_left_at_once(tmp_path: Path) -> None:
    status, ended, _ = check(tmp_path, "test", "gpu_machine.py")
    assert status == 2 and list(ended) == ["machine"]


def test_what_it_takes_is_said(tmp_path: Path) -> None:
    result = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu_check.sh")], capture_output=True, text=True)
    assert result.returncode == 2 and "gpu_check.sh measure" in result.stderr
