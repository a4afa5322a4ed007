"""Every Triton kernel compiles for the GPUs that are meant, within its budget (`kernels.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.aot.kernels import ARCHES, Case, cases

PROGRAM = Path(__file__).with_name("kernels.py")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, str(PROGRAM)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("case", "arch"),
    [pytest.param(c, arch, id=f"{c.name} sm_{arch}") for arch in ARCHES for c in cases() if arch in c.arches],
)
def test_budget(compiled: dict[str, dict[str, Any]], case: Case, arch: int) -> None:
    found = compiled[f"{case.name} sm_{arch}"]
    assert found["stack"] == found["local"] == 0, "spills, or arrays in local memory"
    assert found["registers"] <= case.registers
    assert found["loads_128"] >= case.loads and found["stores_128"] >= case.stores
    assert found["fused"] == 0, "a fused multiplication has other bits"
    if case.per_element is not None:
        assert found["instructions"] <= case.per_element * case.elements
    if case.loop:
        assert 0 < found["loop"] <= case.loop[arch] * case.elements
    if arch in case.needs:
        assert case.needs[arch] in found["matrix"]
