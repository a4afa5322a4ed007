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
from tests.guard import sass
from tests.guard.figures import holds

PROGRAM = Path(__file__).with_name("kernels.py")


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    here = (item for item in request.session.items if item.path == request.path)
    slow = any(item.get_closest_marker("slow") for item in here)
    command = [sys.executable, str(PROGRAM), *(["--slow"] if slow else [])]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)


def every() -> list[Any]:
    return [
        pytest.param(case, arch, id=f"{case.name} sm_{arch}", marks=[pytest.mark.slow] if case.slow(arch) else [])
        for arch in ARCHES
        for case in cases()
        if arch in case.arches
    ]


@pytest.mark.timeout(900)
def test_code_does_no_more_than_is_recorded(compiled: dict[str, dict[str, Any]]) -> None:
    always = {
        f"{case.name} sm_{arch}" for arch in ARCHES for case in cases() if arch in case.arches and not case.slow(arch)
    }
    holds(sass.section(), {name: found for name, found in sass.figures(compiled).items() if name in always})


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("case", "arch"), every())
def test_budget(compiled: dict[str, dict[str, Any]], case: Case, arch: int) -> None:
    found = compiled[f"{case.name} sm_{arch}"]
    assert found["stack"] == found["local"] == 0, "spills, or arrays in local memory"
    assert found["registers"] <= case.registers
    assert found["loads_128"] >= case.loads and found["stores_128"] >= case.stores
    if case.kernel == "moves.move":
        assert found["together"] >= case.loads, "a load waits for another one"
    assert found["fused"] == 0, "a fused multiplication has other bits"
    if case.constants.get("APPROXIMATE"):
        assert found["approximate"] == ["cos", "lg2", "sin", "sqrt"]
    else:
        assert not found["approximate"], "the bits of the noise are no longer the contract's"
    assert not found["hazards"], "registers are overwritten while a matrix product reads them"
    if case.per_element is not None:
        assert found["instructions"] <= case.per_element * case.elements
    if case.loop:
        assert 0 < found["loop"] <= case.loop[arch] * case.elements
    if arch in case.needs:
        assert case.needs[arch] in found["matrix"]
