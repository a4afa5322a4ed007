"""Questions about a passage, answered in writing: SmolLM2-135M on 273 rows of SQuAD, F1 on rows of other passages.

    python benchmarks/squad.py [--seeds 0 1 2] [--no-save]
    python benchmarks/squad.py --search 1e-3 3e-3      rates on other rows and another seed, nothing is written

Runs of `blockzo finetune` (LoRA, FZOO, loss of the answers), one a seed; a run that is there (runs/squad/seed-N/summary.json) is
read and not repeated, and one that was stopped goes on. Of the 162 test rows 128 are scored, which the seed chooses. F1 and exact
match are of greedy answers, as SQuAD counts them. The rows are what `squad_rows` says of `shared/data/squad_small`: no published
split, so no published scores to compare with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import squad_rows
from benchmarks.harness import Spread, Table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs") / "squad"
METHOD = ["--peft", "lora:r=8,targets=q_proj+v_proj", "--method", "fzoo", "--directions", "8", "--eps", "1e-2"]
METHOD += ["--schedule", "linear", "--batch", "8", "--dtype", "bfloat16", "--stochastic-rounding"]
LENGTH = [
    "--final-rows",
    "128",
    "--eval-every",
    "1000000",
    "--eval-rows",
    "32",
    "--max-new-tokens",
    "12",
    "--threads",
    "1",
]
RATE, STEPS, SEARCH_SEED = "5e-4", 24, 100


def run(name: str, held: str, rate: str, steps: int, seed: int) -> dict[str, Any]:
    """The summary of a run; `held`: the part of the rows that it is scored on."""
    files = squad_rows.write(ROOT / FOLDER)
    folder = FOLDER / name
    told = ROOT / folder / "summary.json"
    if not told.is_file():
        command = [sys.executable, "-m", "blockzo", "finetune", "--output", str(folder)]
        if (ROOT / folder / "journal.bz").is_file():
            command += ["--resume"]
        else:
            data = [
                "--train",
                str(files["train"].relative_to(ROOT)),
                "--validation",
                str(files[held].relative_to(ROOT)),
            ]
            command += ["--task", "squad", *data, *METHOD, *LENGTH]
            command += ["--lr", rate, "--steps", str(steps), "--seed", str(seed)]
        subprocess.run(command, cwd=ROOT, check=True)
    return dict(json.loads(told.read_text(encoding="utf-8")))


def add(table: Table, case: str, result: dict[str, Any]) -> None:
    before, after = result["before"], result["after"]
    for name in ("f1", "exact_match", "loss"):
        table.add(case, f"{name} before", Spread.of([before[name]]), "")
        table.add(case, f"{name} after", Spread.of([after[name]]), "")
    table.add(case, "F1 over zero-shot", Spread.of([after["f1"] - before["f1"]]), "", target=0)
    table.add(case, "rows scored", Spread.of([after["rows"]]), "")
    table.add(case, "forward passes cost", Spread.of([result["flops"] / 1e12]), "TFLOP")
    table.add(case, "journal", Spread.of([result["journal_bytes"] / 1024]), "KiB")
    table.add(case, "seconds with all scoring", Spread.of([result["seconds"]]), "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--search", nargs="*", default=[], help="rates to try on the rows for that")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a search")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    for rate in given.search:
        result = run(f"search-{rate}-{given.steps}", "dev", rate, given.steps, SEARCH_SEED)
        print(f"rate {rate}: before {result['before']}, after {result['after']}", flush=True)
    if given.search:
        return
    table = Table("squad")
    for seed in given.seeds:
        add(table, f"SQuAD, LoRA on SmolLM2, seed {seed}", run(f"seed-{seed}", "test", RATE, STEPS, seed))
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
