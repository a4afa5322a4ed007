"""Paired measurements, and the one table that figures and plots are drawn from (`benchmarks/results.csv`).

What is compared is run in turns, round after round, so that a disturbance of the machine meets both sides; the figure is the
median of the ratios of the rounds. A row is keyed by (benchmark, case, metric, machine): a new run replaces the old row.
"""

from __future__ import annotations

import csv
import datetime
import functools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results.csv"
KEY = ("benchmark", "case", "metric", "machine")
COLUMNS = (*KEY, "p20", "p50", "p80", "unit", "target", "rounds", "threads", "date", "versions", "command")


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile of a metric over the rounds."""

    p20: float
    p50: float
    p80: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        if not values:
            raise ValueError("no values; expected at least one round")
        if len(values) == 1:
            return Spread(values[0], values[0], values[0], 1)
        cuts = statistics.quantiles(values, n=10, method="inclusive")
        return Spread(cuts[1], statistics.median(values), cuts[7], len(values))


def paired(
    sides: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every side in every round; odd rounds go through the sides backwards."""
    names = list(sides)
    for _ in range(warmup):
        for name in names:
            sides[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            begin = clock()
            sides[name]()
            times[name].append(clock() - begin)
    return times


def speedup(times: Mapping[str, Sequence[float]], side: str, base: str) -> Spread:
    """How many times faster `side` is than `base`, from the ratios of the rounds."""
    return Spread.of([b / a for a, b in zip(times[side], times[base], strict=True)])


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = cpu_of(info.read_text(errors="replace")) if info.is_file() else ""
    return found or platform.processor() or platform.machine()


def cpu_of(cpuinfo: str) -> str:
    """Name of the first processor, with family and model where they are told: under one name ("AMD EPYC") clouds rent generations
    of which one does twice the work of another in a cycle.
    """
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    name = facts.get("model name", "")
    family, model = facts.get("cpu family"), facts.get("model")
    return f"{name} (family {family}, model {model})" if name and family and model else name


def instructions() -> str | None:
    """The instruction set of blockzo's CPU kernels; None where they are not built."""
    from blockzo.ops.backends import registry

    kernels = registry.loaded("cpu")
    return None if kernels is None else str(kernels._native.chosen())


def machine() -> str:
    """CPU, number of cores and instruction set; never a host name. AVX-512 is not named: rows had it before there was another."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen = instructions()
    return f"{cpu_name()}, {cores} cores" + (f", {chosen}" if chosen not in (None, "avx512") else "")


def versions() -> str:
    import torch

    import blockzo

    chosen = instructions()
    native = "reference" if chosen is None else f"native {chosen}"
    return f"blockzo {blockzo.__version__} ({native}), torch {torch.__version__}, python {platform.python_version()}"


@functools.lru_cache
def commit() -> str:
    """Of the checkout, short; with `-dirty` where code differs from it."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=RESULTS.parents[1], capture_output=True, text=True)

    try:
        found = git("rev-parse", "--short", "HEAD").stdout.strip()
        changed = git("diff", "--quiet", "HEAD", "--", "*.py", "csrc").returncode
    except OSError:
        return "unknown"
    return (found or "unknown") + ("-dirty" if found and changed else "")


def results() -> Path:
    """Where rows go: the repository's file, or what BLOCKZO_RESULTS names (`blockzo bench` keeps a user's rows apart with it)."""
    return Path(os.environ.get("BLOCKZO_RESULTS", RESULTS))


def command() -> str:
    """What was typed, relative to the repository and without the folders of this machine."""
    script = Path(sys.argv[0]).name
    return " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]])


@dataclass
class Table:
    """Rows of the results file; `save` merges them into it."""

    benchmark: str
    path: Path = field(default_factory=results)
    machine: str = field(default_factory=machine)
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(
        self,
        case: str,
        metric: str,
        spread: Spread,
        unit: str,
        target: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """`target`: the value that the median must reach at least, where one was promised; `at_most`: that it must not pass."""
        import torch

        bound = target if at_most is None else at_most
        met = bound is None or (spread.p50 <= bound if target is None else spread.p50 >= bound)

        self.rows.append(
            {
                "benchmark": self.benchmark,
                "case": case,
                "metric": metric,
                "machine": self.machine,
                "p20": f"{spread.p20:.5g}",
                "p50": f"{spread.p50:.5g}",
                "p80": f"{spread.p80:.5g}",
                "unit": unit,
                "target": "" if bound is None else f"{'>=' if at_most is None else '<='} {bound:.4g}",
                "rounds": str(spread.rounds),
                "threads": str(torch.get_num_threads()),
                "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
                "versions": f"{versions()}, commit {commit()}",
                "command": command(),
            }
        )
        note = "" if bound is None else f"   {self.rows[-1]['target']}: {'met' if met else 'MISSED'}"
        print(
            f"{case:44s} {metric:34s} {spread.p50:10.4g} {unit} [{spread.p20:.4g} .. {spread.p80:.4g}]{note}",
            flush=True,
        )

    def save(self) -> None:
        """Replaces the rows with the same key, keeps all others; the file is written whole, then put in place."""
        held = {tuple(row[name] for name in KEY): row for row in read(self.path)}
        held.update({tuple(row[name] for name in KEY): row for row in self.rows})
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(held[key] for key in sorted(held))
        partial.replace(self.path)


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """All rows of a results file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        if set(row) != set(COLUMNS) or None in row.values():
            raise ValueError(
                f"{path.name} line {number} has columns {sorted(map(str, row))}; expected {', '.join(COLUMNS)}"
            )
    return rows
