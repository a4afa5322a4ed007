"""What a GPU machine is to run, rehearsed: every launch of its tests and benchmarks is made, and in the long form compiled."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 12
"""Of benchmarks/gpu_check.sh."""
TESTS = [
    "pytest",
    "-q",
    "-c",
    os.devnull,
    f"--rootdir={ROOT}",
    "--import-mode=importlib",
    "--noconftest",
    "-p",
    "no:cacheprovider",
]
# torch.compile asks the real driver
TESTS += ["--assert=plain", "--deselect", "tests/cuda/test_graphs.py::test_compiled", "tests/cuda"]


def rehearse(tmp_path: Path, command: list[str], dry: bool) -> tuple[str, int, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTEST_XDIST_WORKER")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "PYTHONPATH": str(ROOT)}
    report = tmp_path / "report.json"
    # without assertions: nothing is computed
    start = [sys.executable, "-O", "tests/aot/rehearsal.py", *(["--dry"] if dry else []), "--report", str(report)]
    result = subprocess.run([*start, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert report.is_file(), result.stderr[-4000:]
    return result.stdout + result.stderr, result.returncode, json.loads(report.read_text())


forms = pytest.mark.parametrize("dry", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["dry", "compiled"])


# starts torch and transformers in a process
@pytest.mark.heavy
@pytest.mark.timeout(1800)
@forms
def test_benchmarks(dry: bool, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    text, status, report = rehearse(
        tmp_path, ["benchmarks/gpu.py", "--small", "--rounds", "1", "--csv", str(rows)], dry
    )
    assert status == 0, text[-4000:]
    assert report["failures"] == [] and report["most_axes"] == 1
    assert set(report["kernels"]) == {"move", "move_rows", "project", "products"}
    with rows.open(newline="") as file:
        cases = {row["case"].split()[0] for row in csv.DictReader(file)}
    assert {"perturbed_linear", "MeZO", "perturb_", "update_", "products", "replay_"} <= cases
    # a process a part, so nothing is compiled in parallel there
    assert report["seconds"] < 2 * 480


@pytest.mark.slow
@pytest.mark.timeout(3600)
@forms
def test_tests(dry: bool, tmp_path: Path) -> None:
    text, status, report = rehearse(tmp_path, TESTS, dry)
    assert status == 0, text[-4000:]
    assert report["failures"] == [] and report["most_axes"] == 1
    own = {"move", "move_rows", "products", "add_parts", "fill_factors", "move_low_rank"}
    # `pairs` is the tests'
    assert set(report["kernels"]) == own | {"pairs"}
    # a machine half as fast as this one compiles them in what the build leaves of the call
    assert 2 * report["seconds"] / WORKERS < 120
