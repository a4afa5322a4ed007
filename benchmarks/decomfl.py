"""Forward FLOPs of FedSPZO to the accuracy that a DeComFL-like baseline ends with, on models that the baseline can train.

    python benchmarks/decomfl.py mpnet-base      [--seeds 0 1 2] [--no-save]      two to three hours on one quiet core
    python benchmarks/decomfl.py smollm2-135m    [--seeds 0 1 2] [--no-save]      the same
    python benchmarks/decomfl.py smollm2-135m --forms auto                        the planner alone beside the baseline

SST-2, 8 clients, 2 sampled, Dirichlet 0.5, batches of 16, rates that fall to 0 along a line. The baseline is one-sided with 5
shared directions (DeComFL, arXiv 2405.15861), 50 rounds: 600 forwards of all clients; FedSPZO gets as many. mpnet-base begins
with a head that ridge regression has fitted to 32 rows (benchmarks/comparison/problems.py): from a new one the baseline learns
nothing. SmolLM2-135M scores label words. Rates are those with the lowest held-out loss of 256 rows at the end of runs on seed 100
with half of the rounds; where a model has several forms of FedSPZO, the form is chosen by the same losses. Accuracy of 320
validation rows is taken 24 times a run. A run that is there (runs/decomfl/NAME/summary.json) is read and not repeated.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import Spread, Table
from benchmarks.simulated_runs import ROOT, compare, final_loss, note_ratios, run, search

COMMON = "--task sst2 --batch 16 --clients 8 --sample 2 --partition dirichlet --alpha 0.5 --schedule linear --threads 1".split()
FORWARDS, TUNING_SEED, EVALUATIONS = 600, 100, 24


@dataclass(frozen=True)
class Candidate:
    """A method, plain forwards that one estimate of it costs, and rates to try."""

    name: str
    options: str
    forwards: float
    rates: tuple[str, ...]

    def rounds(self, share: float = 1.0) -> int:
        """Of two clients each, that cost `share` of the budget."""
        return round(share * FORWARDS / (2 * self.forwards))


ONE_SIDED = "--method one-sided --directions 5"
PAIRS = "--method spzo --variant decoupled --outer 1"
SPLIT_ONE_SIDED = "--method spzo --one-sided"
AUTO = Candidate("auto", "--method auto", 1.25, ("1",))
"""The planner at its own rates, which are not searched. What a round costs is its choice: 0.8 to 1.5 forwards were seen."""
MODELS = {
    "mpnet-base": (
        Candidate("one-sided", ONE_SIDED, 6, ("4e-5", "1.2e-4")),
        (
            Candidate(
                "last-one-sided",
                f"{SPLIT_ONE_SIDED} --variant decoupled --split 11 --outer 1 --inner 16",
                3.4,
                ("1.5e-5,1e-3", "3e-5,1e-3", "6e-5,1e-3", "1.2e-4,1e-3"),
            ),
            Candidate(
                "last-one-sided-3",
                f"{SPLIT_ONE_SIDED} --variant decoupled --split 11 --outer 3 --inner 5",
                5.3,
                ("4.5e-5,1e-3",),
            ),
            Candidate("last", f"{PAIRS} --split 11 --inner 16", 5.7, ("1.5e-5,1e-3", "1.5e-5,3e-4", "1.5e-5,3e-3")),
            Candidate("head", f"{PAIRS} --split head --inner 32", 3, ("5e-6,0.1", "5e-6,0.3", "1.5e-5,0.1")),
            AUTO,
        ),
    ),
    "smollm2-135m": (
        Candidate("one-sided", ONE_SIDED, 6, ("1.2e-4", "3.6e-4")),
        (
            Candidate(
                "half-one-sided",
                f"{SPLIT_ONE_SIDED} --split 0.5 --outer 2 --inner 3",
                5,
                ("3e-4", "6e-4", "3e-4,6e-4"),
            ),
            Candidate("half-one-sided-1", f"{SPLIT_ONE_SIDED} --split 0.5 --outer 1 --inner 4", 3.5, ("2e-4,2e-4",)),
            Candidate(
                "late-one-sided",
                f"{SPLIT_ONE_SIDED} --variant decoupled --split 0.8 --outer 4 --inner 1",
                6,
                ("3e-4,6e-4",),
            ),
            Candidate("half", "--method spzo --split 0.5 --outer 1 --inner 4", 5, ("4e-5", "1.2e-4")),
            Candidate("late", f"{PAIRS} --split 0.8 --inner 8", 6.2, ("3e-5,1.2e-4", "3e-5,3.6e-4")),
            AUTO,
        ),
    ),
}
"""By model: the baseline and the forms of FedSPZO."""


def start_of(model: str) -> str:
    """Folder or name that a run of this model begins with."""
    if model != "mpnet-base":
        return model
    from benchmarks.comparison.mpnet import fetch_mpnet
    from benchmarks.comparison.problems import SPLITS, make

    folder = ROOT / "runs" / "decomfl" / "mpnet-ridge"
    if not (folder / "config.json").is_file():
        problem = make(model, "sst2", 512, SPLITS[0], tuning=True)
        problem.model.save_pretrained(folder)
        for file in fetch_mpnet().iterdir():
            if not (folder / file.name).exists() and file.suffix in (".json", ".txt"):
                shutil.copy(file, folder)
    return str(folder.relative_to(ROOT))


def tuned(model: str, start: str, candidate: Candidate) -> tuple[float, str]:
    """Lowest loss and its rate."""
    losses: dict[str, float] = {}

    def loss_of(lr: str) -> float:
        rounds = str(candidate.rounds(0.5))
        told = ["--seed", str(TUNING_SEED), "--lr", lr, "--rounds", rounds, "--eval-every", rounds]
        ends = ["--eval-rows", "256", "--final-rows", "256"]
        name = f"decomfl/{model}-tune-{candidate.name}-{lr}"
        losses[lr] = final_loss(name, "--model", start, *COMMON, *candidate.options.split(), *told, *ends)
        return losses[lr]

    best = search(list(candidate.rates), loss_of)
    return losses[best], best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--forms", nargs="*", help="of FedSPZO; all by default")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    table = Table("decomfl")
    baseline, known = MODELS[given.model]
    names = [form.name for form in known]
    if unknown := sorted(set(given.forms or ()) - set(names)):
        parser.error(f"--forms: found {', '.join(unknown)}, expected some of {', '.join(names)}")
    forms = [form for form in known if form.name in (given.forms or names)]
    start = start_of(given.model)
    found = {form: tuned(given.model, start, form) for form in forms}
    ours = min(forms, key=lambda form: found[form][0])
    rates = {baseline: tuned(given.model, start, baseline)[1], ours: found[ours][1]}
    ratios = []
    for seed in given.seeds:
        names = []
        for candidate, lr in rates.items():
            rounds = candidate.rounds()
            told = ["--seed", str(seed), "--lr", lr, "--rounds", str(rounds)]
            ends = ["--eval-every", str(rounds // EVALUATIONS), "--eval-rows", "320", "--final-rows", "320"]
            names.append(f"decomfl/{given.model}-{candidate.name}-{seed}")
            result = run(names[-1], "--model", start, *COMMON, *candidate.options.split(), *told, *ends)
            after = float(result["after"]["accuracy"])
            case = f"{given.model} SST-2 {candidate.name} {lr} seed {seed}"
            print(f"{case}: accuracy {after:.4f}, {result['flops']:.4g} FLOPs", flush=True)
            table.add(case, "accuracy", Spread.of([after]), "")
            table.add(case, "TFLOP", Spread.of([result["flops"] / 1e12]), "TFLOP")
        ratios.append(compare(names[0], names[1]))
    # rows of all forms are not replaced by those of some
    note_ratios(table, f"{given.model} SST-2 {ours.name if given.forms else 'FedSPZO'}", ratios)
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
