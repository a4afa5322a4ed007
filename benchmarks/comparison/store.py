"""The keyed CSV of runs. A run's rows are appended by one write when it ends, so a stopped command loses the run in progress."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "comparison.csv"
BEGINNING = 1e-3
"""So far may losses before training be apart, for another machine sums in another order."""


@dataclass(frozen=True)
class Run:
    """What a run is known by.

    Attributes:
        stage: "tune" (chooses a rate; scored on the few-shot dev rows) or "compare" (scored on the test rows).
        shots: rows of each class that are trained on.
        lr: the rate as text; `A|B` where there is one for each of two blocks.
        seed: of the few-shot split, the batches and the noise; of the last two alone while tuning.
        budget: forward FLOPs, as a number of plain forwards of a mean training batch.
    """

    stage: str
    model: str
    task: str
    shots: int
    method: str
    lr: str
    seed: int
    budget: int


@dataclass(frozen=True)
class Point:
    """One checkpoint of a run; cost columns hold training alone.

    Attributes:
        checkpoint: 0 before training up to `checkpoints`; a diverged run has all of them, the rest with `diverged` 1.
        spent: forward FLOPs so far, in plain forwards of a mean training batch (the unit of `budget`).
        forwards: losses computed so far.
        seconds: wall time of the steps so far.
        accuracy, loss: on the test rows (compare) or the dev rows (tune).
        train_loss: on fixed rows of the training split.
    """

    checkpoint: int
    checkpoints: int
    flops: int
    spent: float
    forwards: int
    steps: int
    seconds: float
    accuracy: float
    loss: float
    train_loss: float
    diverged: int


@dataclass(frozen=True)
class Place:
    """Where and when a run was made."""

    threads: int
    workers: int
    versions: str
    cpu: str
    commit: str
    date: str


KEY = tuple(f.name for f in fields(Run))
COLUMNS = (*KEY, *(f.name for f in fields(Point)), *(f.name for f in fields(Place)))
_INTEGERS = {"shots", "seed", "budget", "checkpoint", "checkpoints", "flops", "forwards", "steps", "diverged"}
_NUMBERS = {"spent", "seconds", "accuracy", "loss", "train_loss"}

Runs = dict[Run, list[Point]]


def _line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    return text.getvalue()


def append(path: Path, run: Run, points: Sequence[Point], place: Place) -> None:
    """Appends a finished run: one write, then fsync; the header first where the file is new.

    Raises:
        ValueError: it is not whole, or begins at another loss than other runs of its problem.
    """
    if [p.checkpoint for p in points] != list(range(points[-1].checkpoints + 1)):
        raise ValueError(f"{len(points)} checkpoints; expected 0 to {points[-1].checkpoints}, a whole run")
    _same_beginning(read(path), run, points[0])
    text = "".join(_line((*astuple(run), *astuple(point), *astuple(place))) for point in points)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if os.fstat(handle).st_size == 0:
            text = _line(COLUMNS) + text
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _same_beginning(runs: Runs, run: Run, first: Point) -> None:
    """Weights that a loader made up, not read, differ from process to process: runs of one problem begin at one loss."""
    for other, points in runs.items():
        if problem_of(other) == problem_of(run) and not abs(points[0].loss - first.loss) <= BEGINNING:
            raise ValueError(
                f"{run} begins at loss {first.loss:.4f}, {other} began at {points[0].loss:.4f}; expected one beginning: the "
                "model or its data are not those of the rows in the file; remove what is wrong there"
            )


def problem_of(run: Run) -> tuple[str, str, str, int, int]:
    return run.stage, run.model, run.task, run.shots, run.seed


def read(path: Path = FILE) -> Runs:
    """All whole runs; a run whose rows were cut off by a kill is left out.

    Raises:
        ValueError: another header, a row that is not the file's last and has another number of columns, or a key twice.
    """
    rows = _rows(path)
    found: Runs = {}
    for row in rows:
        typed = {name: _typed(name, value) for name, value in row.items()}
        run = Run(*(typed[name] for name in KEY))  # type: ignore[arg-type]
        point = Point(*(typed[f.name] for f in fields(Point)))  # type: ignore[arg-type]
        points = found.setdefault(run, [])
        if any(p.checkpoint == point.checkpoint for p in points):
            raise ValueError(f"{path.name} has checkpoint {point.checkpoint} of {run} twice; expected every key once")
        points.append(point)
    return {run: points for run, points in found.items() if len(points) == points[0].checkpoints + 1}


def clocks(path: Path = FILE) -> dict[Run, tuple[str, ...]]:
    """Machine, threads, versions, commit and day of each run: seconds of two runs are compared where these are the same."""
    names = [f.name for f in fields(Place)]
    return {Run(*(_typed(n, r[n]) for n in KEY)): tuple(r[n] for n in names) for r in _rows(path)}  # type: ignore[arg-type]


def places(path: Path = FILE) -> list[dict[str, str]]:
    """The distinct machines, versions and dates of a file's rows."""
    names = [f.name for f in fields(Place)]
    return [dict(zip(names, key, strict=True)) for key in sorted({tuple(r[n] for n in names) for r in _rows(path)})]


def mend(path: Path) -> int:
    """Makes the file with its header, or drops the rows of runs that are not whole (a kill during the write).

    Returns:
        How many lines were dropped.
    """
    if not path.is_file() or path.stat().st_size == 0:
        path.write_text(_line(COLUMNS), encoding="utf-8")
        return 0
    whole = read(path)
    rows = _rows(path)
    kept = [r for r in rows if Run(*(_typed(n, r[n]) for n in KEY)) in whole]  # type: ignore[arg-type]
    text = _line(COLUMNS) + "".join(_line(row[name] for name in COLUMNS) for row in kept)
    old = path.read_text(encoding="utf-8")
    if text == old:
        return 0
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return max(1, old.count("\n") - text.count("\n"))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    torn = not text.endswith("\n")
    lines = list(csv.reader(io.StringIO(text)))
    if torn:
        lines = lines[:-1]
    if lines and tuple(lines[0]) != COLUMNS:
        raise ValueError(f"{path.name} has columns {', '.join(lines[0])}; expected {', '.join(COLUMNS)}")
    for number, line in enumerate(lines, 1):
        if len(line) != len(COLUMNS):
            raise ValueError(f"{path.name} line {number} has {len(line)} fields; expected {len(COLUMNS)}")
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]]


def _typed(name: str, value: str) -> str | int | float:
    if name in _INTEGERS:
        return int(value)
    return float(value) if name in _NUMBERS else value
