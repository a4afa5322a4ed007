"""The README's main job on several seeds, and the longer run: accuracy on the SST-2 validation set before and after.

    python benchmarks/main_job.py [--seeds 0 1 2] [--long] [--no-save]

Each run is `scripts/demo.sh` with another seed (4 to 5 minutes on two cores), the long one has 240 steps. A run that
is there (runs/main-job/NAME/summary.json) is read and not repeated, so the command can be stopped and started again.
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
LONG = ["--steps", "240", "--eval-every", "40"]


def run(name: str, options: list[str]) -> dict[str, Any]:
    folder = ROOT / "runs" / "main-job" / name
    if not (folder / "summary.json").is_file():
        more = ["--resume"] if (folder / "journal.bz").is_file() else []
        subprocess.run(
            ["scripts/demo.sh", *options, "--output", str(folder.relative_to(ROOT)), *more], cwd=ROOT, check=True
        )
    return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def add(
    table: Table, case: str, result: dict[str, Any], over_zero_shot: float | None, over_calibrated: float | None
) -> None:
    before, after = result["before"], result["after"]
    for name in ("accuracy", "calibrated_accuracy", "auc"):
        table.add(case, f"{name} before", Spread.of([before[name]]), "")
        table.add(case, f"{name} after", Spread.of([after[name]]), "")
    gain = after["accuracy"] - before["accuracy"]
    table.add(case, "gain over zero-shot", Spread.of([gain]), "", target=over_zero_shot)
    gain = after["accuracy"] - before["calibrated_accuracy"]
    table.add(case, "gain over calibrated zero-shot", Spread.of([gain]), "", target=over_calibrated)
    table.add(case, "forward passes cost", Spread.of([result["flops"] / 1e12]), "TFLOP")
    table.add(case, "journal", Spread.of([result["journal_bytes"] / 1024]), "KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--long", action="store_true", help="the longer run too")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    table = Table("main job")
    for seed in given.seeds:
        add(table, f"60 steps, seed {seed}", run(f"seed-{seed}", ["--seed", str(seed)]), 0.08, None)
    if given.long:
        add(table, "240 steps, seed 0", run("long-0", LONG), None, 0.05)
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
