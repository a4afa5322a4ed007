"""What CI asks of every wheel (scripts/check_wheel.py) holds of this checkout, its clocks left out."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

FILE = str(Path(__file__).resolve().parents[2] / "scripts" / "check_wheel.py")
CHECKS = runpy.run_path(FILE)
ALONE = """
import runpy, torch, blockzo as bz
bz.perturb_({{"w": torch.zeros(1 << 20)}}, bz.Noise(1), 0.5)
print(runpy.run_path({file!r})["runtimes"]())
"""


def test_the_extension_loads_before_and_after_torch() -> None:
    CHECKS["either_order"]()


def test_the_extension_and_torch_share_one_openmp() -> None:
    # in a process of its own: other packages that tests load may bring one too
    done = subprocess.run([sys.executable, "-c", ALONE.format(file=FILE)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(ast.literal_eval(done.stdout)) <= 1, done.stdout


def test_the_clock_takes_the_least_of_each_side() -> None:
    calls: list[str] = []
    times = CHECKS["clocked"]((lambda: calls.append("a"), lambda: calls.append("b")))
    assert len(times) == 2 and all(0 <= seconds < 1 for seconds in times)
    assert calls.count("a") == calls.count("b") == CHECKS["ROUNDS"] * CHECKS["IN_A_ROW"]
