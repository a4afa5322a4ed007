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

from benchmarks.harness import Spread, Table

ROOT = Path(__file__).resolve().parents[1]
BEGINNING = 1e-3
"""Between losses of one model before training, on two machines."""
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
    """The rate with the lowest loss; while the best of several single rates lies at an end, factors of 3 go on from it."""
    found: dict[str, float] = {}
    waiting = list(rates)
    while waiting:
        lr = waiting.pop(0)
        found[lr] = loss_of(lr)
        order = sorted(found, key=lambda lr: float(lr.partition(",")[0]))
        best = min(found, key=lambda lr: found[lr])
        if len(rates) > 1 and not waiting and "," not in lr and best in (order[0], order[-1]) and len(found) < 9:
            waiting.append(f"{float(best) * (3 if best == order[-1] else 1 / 3):.3g}")
    return min(found, key=lambda lr: found[lr])


def compare(baseline: str, other: str) -> tuple[float, float] | None:
    """How many times fewer FLOPs `other` takes to the baseline's final accuracy; None where the baseline gained too little.

    Returns:
        Against all FLOPs of the baseline, and against those after which the baseline was there for the first time: a curve that
        is flat or falls at its end is there long before, and the first figure alone then flatters. 0 where `other` never is.

    Raises:
        ValueError: the two begin at different losses of the same rows, so one of them trained another model.
    """
    lines = [line for line in lines_of(baseline) if "accuracy" in line]
    first, last = lines[0], lines[-1]
    begins = next(line for line in lines_of(other) if "accuracy" in line)
    if begins["eval_rows"] == first["eval_rows"] and abs(begins["eval_loss"] - first["eval_loss"]) > BEGINNING:
        raise ValueError(
            f"{baseline} begins at a loss of {first['eval_loss']:.4f}, {other} at {begins['eval_loss']:.4f} on as many rows; "
            "expected one model and one set of rows: remove the older of runs/NAME and give the command again"
        )
    gained = last["accuracy"] - first["accuracy"]
    told = f"{baseline}: accuracy {first['accuracy']:.3f} to {last['accuracy']:.3f} in {last['flops']:.3g} FLOPs"
    if gained < LEAST_GAIN:
        print(f"{told}: no target", flush=True)
        return None
    own, others = _arrival(lines, last["accuracy"]), _arrival(lines_of(other), last["accuracy"])
    ratios = last["flops"] / others, own / others
    print(
        f"{told} (there at {own:.3g}): {other} {ratios[0]:.2f}x fewer, {ratios[1]:.2f}x of first arrivals", flush=True
    )
    return ratios


def _arrival(lines: list[dict[str, Any]], accuracy: float) -> float:
    """FLOPs of the first line with so much; infinite where there is none."""
    return next((float(line["flops"]) for line in lines if line.get("accuracy", 0) >= accuracy), math.inf)


def note_ratios(table: Table, case: str, found: list[tuple[float, float] | None]) -> None:
    """Rows for both of `compare`'s figures, of the seeds that have a target."""
    both = [ratios for ratios in found if ratios is not None]
    if both:
        metric = "times fewer FLOPs than DeComFL-like"
        table.add(case, metric, Spread.of([whole for whole, _ in both]), "x", target=2)
        table.add(case, f"{metric}, first arrivals of both", Spread.of([first for _, first in both]), "x")
