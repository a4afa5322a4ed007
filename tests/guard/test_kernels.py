"""The CPU kernels do no more than is recorded; and the guard fails on a kernel that does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guard import faults, kernels
from tests.guard.figures import Figures, differences, holds

# runs the kernels in valgrind
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def made() -> list[Path]:
    try:
        return kernels.objects()
    except kernels.Missing as reason:
        if os.environ.get("BLOCKZO_CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counts")


@pytest.fixture(scope="module")
def driver(folder: Path) -> Path:
    return kernels.driver(folder)


@pytest.fixture(scope="module")
def found(made: list[Path], driver: Path, folder: Path) -> Figures:
    return kernels.counted(kernels.linked([driver, *made], folder), folder, *kernels.SETS)


def test_kernels_do_no_more_than_is_recorded(made: list[Path], found: Figures) -> None:
    holds(kernels.section(made), found)


def test_a_worse_kernel_is_found(made: list[Path], driver: Path, found: Figures, tmp_path: Path) -> None:
    case = f"avx2 {faults.CASE}"
    tiles = kernels.WEIGHTS / faults.TILE
    program = faults.program([driver, *made], tmp_path, found[case]["instructions"] / tiles)
    changed = kernels.counted(program, tmp_path, *faults.FAULTS, only=faults.CASE)
    told = {
        name: differences({case: changed[f"{name} {faults.CASE}"]}, {case: found[case]}, whole=False)
        for name in faults.FAULTS
    }
    assert any("passes" in line and "WORSE" in line for line in told["pass"]), told
    assert any("allocations" in line and "WORSE" in line for line in told["allocation"]), told
    # nothing else is other than it was
    (line,) = told["instructions"]
    assert "instructions" in line and "WORSE" in line and "3.0%" in line, line
