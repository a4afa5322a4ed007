"""The main job on three seeds: `blockzo demo`, its accuracy on the 500 TREC test questions before and after.

    python benchmarks/main_job.py [--seeds 0 1 2] [--no-save]

A run that is there (runs/main-job/seed-N/summary.json) is read and not repeated, so the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import Spread, Table

ROOT = Path(__file__).resolve().parents[1]


def run(seed: int) -> dict[str, Any]:
    folder = ROOT / "runs" / "main-job" / f"seed-{seed}"
    if not (folder / "summary.json").is_file():
        more = ["--resume"] if (folder / "journal.bz").is_file() else ["--seed", str(seed)]
        command = [sys.executable, "-m", "blockzo", "demo", "--output", str(folder.relative_to(ROOT)), *more]
        subprocess.run(command, cwd=ROOT, check=True)
    return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def add(table: Table, case: str, result: dict[str, Any]) -> None:
    before, after = result["before"], result["after"]
    for name in ("accuracy", "calibrated_accuracy", "loss"):
        table.add(case, f"{name} before", Spread.of([before[name]]), "")
        table.add(case, f"{name} after", Spread.of([after[name]]), "")
    gain = after["accuracy"] - max(before["accuracy"], before["calibrated_accuracy"])
    table.add(case, "gain over calibrated zero-shot", Spread.of([gain]), "", target=0.05)
    table.add(case, "forward passes cost", Spread.of([result["flops"] / 1e12]), "TFLOP")
    table.add(case, "seconds with all scoring", Spread.of([result["seconds"]]), "s")
    table.add(case, "journal", Spread.of([result["journal_bytes"] / 1024]), "KiB")
    memory = result["memory"]
    if memory["training"] is not None and memory["inference"] is not None:
        over = memory["training"] / memory["inference"]
        table.add(case, "peak memory over scoring", Spread.of([over]), "x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    table = Table("main job")
    for seed in given.seeds:
        add(table, f"demo, seed {seed}", run(seed))
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
