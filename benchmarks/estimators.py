"""Estimators against each other on real models and data: accuracy against forward FLOPs.

    python benchmarks/estimators.py --part 1              about three hours on two cores; stop and start it as you like
    python benchmarks/estimators.py --budget 300 --seeds 13 21 --hours 1
    python benchmarks/estimators.py --table --plot        docs/results.md from the CSV, nothing is run

Every run is in benchmarks/comparison.csv when it ends; what is there is not run again. Rules: docs/comparison.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# workers that wait in a spin would take the other worker's core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.comparison import curves, report, store
from benchmarks.comparison.methods import METHODS
from benchmarks.comparison.plan import PARTS, Request
from benchmarks.comparison.run import Work, carry_out, cores, estimate, say
from benchmarks.comparison.task_rows import TASKS


def request_of(given: argparse.Namespace) -> Request:
    models, tasks, seeds = PARTS[given.part]
    return Request(
        tuple(given.models or models),
        tuple(given.tasks or tasks),
        tuple(given.methods or METHODS),
        tuple(given.seeds or seeds),
        given.shots,
        given.budget,
    )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", type=int, choices=sorted(PARTS), default=1, help="models, tasks and seeds to begin from"
    )
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", help="of the few-shot splits: 13 21 42 87 100")
    parser.add_argument("--shots", type=int, default=512, choices=[16, 512], help="training rows of each class")
    parser.add_argument(
        "--budget", type=int, default=600, help="forward FLOPs of a run, in forwards of a training batch"
    )
    parser.add_argument("--hours", type=float, help="begin no run after so long")
    parser.add_argument(
        "--workers", type=int, default=min(2, cores()), help="processes; the cores are shared among them"
    )
    parser.add_argument("--csv", type=Path, default=store.FILE)
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, run nothing")
    parser.add_argument("--table", action="store_true", help="write the tables into docs/results.md, run nothing")
    parser.add_argument("--plot", action="store_true", help="draw docs/comparison-*.png, run nothing")
    given = parser.parse_args(words)
    if given.budget < 1 or given.workers < 1:
        parser.error(f"--budget is {given.budget}, --workers {given.workers}; expected positive numbers")
    return given


def main() -> int:
    given = arguments()
    if given.table or given.plot:
        if given.plot:
            for path in curves.plot(store.read(given.csv), report.PAGE.parent):
                say(f"drawn {path.name}")
        if given.table:
            report.write(given.csv)
        return 0
    until = None if given.hours is None else time.time() + 3600 * given.hours
    threads = max(1, cores() // given.workers)
    work = Work(request_of(given), given.csv, given.workers, threads, until)
    say(f"at most {estimate(work):.1f} hours on this machine with {given.workers} worker(s) of {threads} thread(s)")
    if given.estimate:
        return 0
    # a plain kill must stop the workers too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        problems = carry_out(work)
    except KeyboardInterrupt:
        say("stopped; finished runs are kept, the same command goes on from here")
        return 130
    for problem in problems:
        say(problem)
    say("not all runs were made; the same command goes on from here" if problems else "all runs are done")
    return int(any("code" in problem for problem in problems))


if __name__ == "__main__":
    sys.exit(main())
