"""Runs of `blockzo simulate` that benchmarks compare: each is made once, and read from its folder afterwards."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEAST_GAIN = 0.025
"""Accuracy that a baseline must gain for its end to be a target: less is sampling error (as in docs/comparison.md)."""


def run(name: str, *options: str) -> dict[str, Any]:
    """The summary of runs/NAME, which is made where it is not there and continued where it was cut off.

    Raises:
        subprocess.CalledProcessError: the run failed; what it said was printed.
    """
    folder = ROOT / "runs" / name
    if not (folder / "summary.json").is_file():
        more = ["--resume"] if (folder / "journal.bz").is_file() else list(options)
        if more[0] != "--resume":
            # FedAvg cannot be continued
            shutil.rmtree(folder, ignore_errors=True)
        words = [sys.executable, "-m", "blockzo", "simulate", *more, "--output", str(folder.relative_to(ROOT))]
        print(" ".join(["blockzo", *words[3:]]), flush=True)
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def lines_of(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def final_loss(name: str, *options: str) -> float:
    """Held-out loss at the end of a run; infinite where its losses overflowed."""
    try:
        run(name, *options)
        found = float(lines_of(name)[-1]["eval_loss"])
    except subprocess.CalledProcessError:
        found = math.inf
    print(f"{name}: loss {found:.4f}", flush=True)
    return found


def search(rates: list[str], loss_of: Callable[[str], float]) -> str:
    """The rate with the lowest loss; while the best of single rates lies at an end of the grid, it goes on by factors of 3."""
    found: dict[str, float] = {}
    waiting = list(rates)
    while waiting:
        lr = waiting.pop(0)
        found[lr] = loss_of(lr)
        order = sorted(found, key=lambda lr: float(lr.partition(",")[0]))
        best = min(found, key=lambda lr: found[lr])
        if not waiting and "," not in lr and best in (order[0], order[-1]) and len(found) < 9:
            waiting.append(f"{float(best) * (3 if best == order[-1] else 1 / 3):.3g}")
    return min(found, key=lambda lr: found[lr])


def compare(baseline: str, other: str, ratios: list[float]) -> None:
    """FLOPs of the baseline over those that `other` takes to its final accuracy; none where the baseline gained too little."""
    first, *_, last = [line for line in lines_of(baseline) if "accuracy" in line]
    gained = last["accuracy"] - first["accuracy"]
    told = f"{baseline}: accuracy {first['accuracy']:.3f} to {last['accuracy']:.3f} in {last['flops']:.3g} FLOPs"
    if gained < LEAST_GAIN:
        print(f"{told}: no target", flush=True)
        return
    reached = [line for line in lines_of(other) if line.get("accuracy", 0) >= last["accuracy"]]
    ratios.append(last["flops"] / reached[0]["flops"] if reached else 0.0)
    print(f"{told}: {other} {ratios[-1]:.2f}x fewer", flush=True)
