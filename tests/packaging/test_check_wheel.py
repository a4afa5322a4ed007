"""What CI asks of every wheel (scripts/check_wheel.py) holds of this checkout, its clocks left out."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

import blockzo as bz

CHECKS = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "check_wheel.py"))


def test_the_extension_loads_before_and_after_torch() -> None:
    CHECKS["either_order"]()


def test_the_extension_and_torch_share_one_openmp() -> None:
    bz.perturb_({"w": torch.zeros(1 << 20)}, bz.Noise(1), 0.5)
    assert len(CHECKS["runtimes"]()) <= 1


def test_the_clock_takes_the_least_of_each_side() -> None:
    calls: list[str] = []
    times = CHECKS["clocked"]((lambda: calls.append("a"), lambda: calls.append("b")))
    assert len(times) == 2 and all(0 <= seconds < 1 for seconds in times)
    assert calls.count("a") == calls.count("b") == CHECKS["ROUNDS"] * CHECKS["IN_A_ROW"]
