"""Checks an installed wheel, from any folder but the checkout: python scripts/check_wheel.py

The self-test of every kernel; the same bits on one thread and on all; and that the kernels' threads and torch's live together.
On Linux both use GNU OpenMP. Wheels do not bundle it (pyproject.toml, tool.cibuildwheel): the extension takes the copy that
torch has loaded, so there is one pool. With two, idle threads of one spin while the other works. That is what the last
check clocks: torch's work and blockzo's in turns, against each alone.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ELEMENTS, ROUNDS, IN_A_ROW, SLOWEST = 1 << 22, 20, 5, 3.0


def self_test() -> None:
    done = subprocess.run([sys.executable, "-m", "blockzo", "env", "--json"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    if done.returncode or not report["self_test"]["ok"] or not report["build"]["native"]:
        raise SystemExit(f"the self-test failed or there are no native kernels:\n{done.stdout}\n{done.stderr}")
    print(f"self-test: {report['self_test']['checks']} checks, instruction set {report['cpu']['chosen']}")


def either_order() -> None:
    """The extension may be loaded before torch, by a program that asks for it."""
    for names in ("torch, blockzo.ops", "blockzo.ops, torch"):
        code = f"import {names}; from blockzo.ops.backends import choice; assert choice.serving('cpu').__name__.endswith('cpu')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"import {names}: no native kernels\n{done.stderr}")


def runtimes() -> list[str]:
    """Files of OpenMP that this process has mapped; empty where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    files = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(file for file in files if any(name in Path(file).name for name in ("libgomp", "libomp", "libiomp")))


def clocked(sides: Sequence[Callable[[], object]]) -> list[float]:
    """Least seconds of each, over rounds in which they take turns: other programs only ever add."""
    least = [math.inf] * len(sides)
    for _ in range(ROUNDS):
        for place, side in enumerate(sides):
            for _ in range(IN_A_ROW):
                begin = time.perf_counter()
                side()
                least[place] = min(least[place], time.perf_counter() - begin)
    return least


def together() -> None:
    import torch

    import blockzo as bz

    threads = torch.get_num_threads()
    digests = []
    for count in (1, threads):
        torch.set_num_threads(count)
        weights = {"w": torch.linspace(-1, 1, ELEMENTS)}
        bz.perturb_(weights, bz.Noise(5, "gaussian"), 0.25)
        digests.append(bz.digest(weights))
    if len(set(digests)) != 1:
        raise SystemExit(f"one thread and {threads} give different bits: {digests}")
    noise, weights, other = bz.Noise(5), {"w": torch.zeros(ELEMENTS)}, torch.zeros(ELEMENTS)

    def ours() -> None:
        bz.perturb_(weights, noise, 0.25)

    def theirs() -> None:
        other.mul_(0.5).add_(1.0)

    def both() -> None:
        ours()
        theirs()

    mine, yours, turns = clocked((ours, theirs, both))
    ratio = turns / (mine + yours)
    found = runtimes()
    print(f"OpenMP: {', '.join(found) or 'not told'}; {threads} threads; in turns {ratio:.2f} of each alone")
    if len(found) > 1:
        raise SystemExit(f"{len(found)} copies of OpenMP in one process; expected torch's alone")
    if ratio > SLOWEST:
        raise SystemExit(
            f"torch and blockzo in turns take {ratio:.2f} of their times alone; expected {SLOWEST} at most"
        )


if __name__ == "__main__":
    self_test()
    either_order()
    together()
