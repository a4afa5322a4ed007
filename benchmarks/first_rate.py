"""The learning rate that `blockzo finetune` measures where none is given, beside the one that a search chose.

    python benchmarks/first_rate.py [--models minilm-l6 stories15m smollm2-135m mpnet-base] [--no-save]

Rates of the search are those of benchmarks/comparison.csv (docs/comparison.md: neighbours differ by 3); what is measured sees
four training batches of the tuning problem, and no row that is scored.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import analysis, store
from benchmarks.comparison.methods import METHODS, numbers
from benchmarks.comparison.problems import BATCH, TUNING_SEED, make
from benchmarks.harness import Spread, Table
from blockzo.finetune.first_rate import BATCHES
from blockzo.optim.first_rate import suggest_lr

TRIED = ("mezo", "n-spsa", "one-sided", "fzoo", "spzo-coupled")
TASKS = ("sst2", "trec")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm-l6", "stories15m", "smollm2-135m", "mpnet-base"])
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    table, runs = Table("first rate"), store.read()
    for case in analysis.cases(runs):
        model, task, shots, _ = case
        rates = {name: lr for name, lr in analysis.chosen_rates(runs, case).items() if name in TRIED}
        if model not in given.models or task not in TASKS or not rates:
            continue
        problem = make(model, task, shots, TUNING_SEED, tuning=True)
        batches = [problem.batch(step) for step in range(BATCHES)]
        for name, lr in rates.items():
            found = suggest_lr(METHODS[name].make(problem, numbers(lr), TUNING_SEED), batches, BATCH)  # type: ignore[arg-type]
            table.add(f"{model} {task} {name}", "measured rate", Spread.of([found]), "")
            table.add(
                f"{model} {task} {name}", "measured rate over the search's", Spread.of([found / numbers(lr)[0]]), "x"
            )
        if not given.no_save:
            table.save()


if __name__ == "__main__":
    main()
