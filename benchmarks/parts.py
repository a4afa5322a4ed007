"""The command line of a benchmark of CPU kernels that has parts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping

import torch

from benchmarks.harness import Table
from blockzo import _native

Part = Callable[[Table, argparse.Namespace], None]


def run(name: str, told: str | None, parts: Mapping[str, Part], rounds: int, **numbers: int) -> None:
    """Runs what is asked for, and puts its rows into results.csv.

    Args:
        name: of the benchmark in the table.
        told: its module's docstring, for --help.
        parts: by name; each takes the table and the options.
        rounds, numbers: further options of this benchmark, with their defaults.
    """
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(parts), choices=list(parts))
    for option, default in {"threads": 1, "rounds": rounds, **numbers}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--no-save", action="store_true", help="print, and leave results.csv as it is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    table = Table(name)
    print(f"{table.machine}; {options.threads} threads, {_native.chosen()}; load {os.getloadavg()[0]:.1f}", flush=True)
    for part in options.only:
        parts[part](table, options)
    if not options.no_save:
        table.save()
