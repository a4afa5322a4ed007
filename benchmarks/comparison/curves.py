"""Accuracy against forward FLOPs, drawn from the CSV: the mean over seeds and its confidence band."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import analysis
from benchmarks.comparison.store import Point, Runs

# 97.5 % quantiles of Student's t for 1 .. 9 degrees of freedom
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def mean_and_band(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval (Student's t); 0 for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0
    quantile = _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1]
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def curve(seeds: Mapping[int, Sequence[Point]]) -> tuple[list[float], list[float], list[float]]:
    """Mean FLOPs (in forwards), mean accuracy and half band at each checkpoint."""
    columns = list(zip(*seeds.values(), strict=True))
    costs = [statistics.fmean(point.spent for point in column) for column in columns]
    pairs = [mean_and_band([point.accuracy for point in column]) for column in columns]
    return costs, [mean for mean, _ in pairs], [half for _, half in pairs]


def plot(runs: Runs, folder: Path) -> list[Path]:
    """One picture a case, `comparison-<model>-<task>.png`; the budget with the most runs where a case has several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for case in latest(runs):
        model, task, shots, budget = case
        by_method = analysis.of_case(runs, case)
        figure, axis = pyplot.subplots(figsize=(10, 5.5))
        axis.set_prop_cycle(color=[color for name in ("tab10", "Dark2") for color in pyplot.colormaps[name].colors])
        for name, seeds in by_method.items():
            _draw(axis, name, seeds)
        accuracy = analysis.target(by_method)
        axis.set_xlabel("forward FLOPs, in forwards of a training batch")
        axis.set_ylabel("accuracy")
        axis.grid(alpha=0.3)
        if accuracy is not None:
            axis.axhline(accuracy, color="black", linestyle=":", linewidth=1)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        count = max(len(seeds) for seeds in by_method.values())
        figure.suptitle(f"{model}, {task}, {shots} a class, {count} seed(s): mean and 95 % band; dotted: n-SPSA's end")
        figure.tight_layout()
        path = folder / f"comparison-{model}-{task}.png"
        figure.savefig(path, dpi=90)
        pyplot.close(figure)
        written.append(path)
    return written


def _draw(axis: Any, name: str, seeds: Mapping[int, Sequence[Point]]) -> None:
    base = analysis.METHODS[name].base
    costs, means, halves = curve(seeds)
    (line,) = axis.plot(costs, means, label=name, linestyle="--" if base else "-", linewidth=1.2 if base else 1.8)
    low = [m - h for m, h in zip(means, halves, strict=True)]
    high = [m + h for m, h in zip(means, halves, strict=True)]
    axis.fill_between(costs, low, high, color=line.get_color(), alpha=0.1)


def latest(runs: Runs) -> list[analysis.Case]:
    """Of every model and task the case with the most runs."""
    count: dict[analysis.Case, int] = {}
    for run in runs:
        if run.stage == "compare":
            case = (run.model, run.task, run.shots, run.budget)
            count[case] = count.get(case, 0) + 1
    best: dict[tuple[str, str], analysis.Case] = {}
    for case in count:
        key = case[:2]
        if key not in best or count[case] > count[best[key]]:
            best[key] = case
    return list(best.values())
