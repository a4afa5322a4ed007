"""Micro-benchmarks: saved with what was counted, beside the plain operation of their group; a wrong result has no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRONG = """
from unittest import mock
import pytest
from blockzo.ops.backends import cpu

plain = cpu.perturb_

def wrong(targets, step):
    plain(targets, step)
    targets[0].tensor.view(-1)[-1] += 1e-3

@pytest.fixture(autouse=True)
def one_operation_is_wrong(request):
    with mock.patch.object(cpu, "perturb_", wrong if "gaussian" in request.node.name else plain):
        yield
"""


# starts torch in a process
@pytest.mark.heavy
def test_a_wrong_result_is_not_timed_and_the_others_are_told(tmp_path: Path) -> None:
    (tmp_path / "wrong_operation.py").write_text(WRONG)
    saved = tmp_path / "saved.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/",
        "--benchmark-only",
        "-p",
        "wrong_operation",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--benchmark-max-time=0.01", "--benchmark-min-rounds=1", f"--benchmark-json={saved}"]
    chosen = "test_perturb and float32 and 65536-1 or test_dispatch or test_append and 64"
    done = subprocess.run(
        [*command, "-k", chosen], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1 and "1 failed, 8 passed" in done.stdout, done.stdout[-3000:]
    assert "perturb gaussian torch.float32 differs from the reference: nothing was timed" in done.stdout
    report = json.loads(saved.read_text())
    assert "node" not in report["machine_info"] and "native" in report["machine_info"]["blockzo"]
    found: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in report["benchmarks"]}
    assert not any("gaussian" in name for name in found) and len(found) == 8
    perturb = found["test_perturb[rademacher-float32-65536-1]"]
    assert perturb["group"] == "perturb_ 64 Ki float32, 1 thread"
    assert perturb["extra_info"]["bytes"] == 2 * 4 << 16 and perturb["extra_info"]["GB/s"] > 0
    for name, entry in found.items():
        assert entry["extra_info"]["of the plain operation's speed"] > 0, name


@pytest.mark.slow
def test_all_of_them_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/", "-q", "--benchmark-disable", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


def test_they_are_collected_only_where_they_are_asked_for(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    # pytest's own pattern, by which a folder that is named is searched
    assert {path.name for path in (ROOT / "benchmarks").rglob("test_*.py")} == {
        "test_moves.py",
        "test_products.py",
        "test_records.py",
    }
