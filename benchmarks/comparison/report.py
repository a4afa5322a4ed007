"""The tables of docs/comparison.md, made from the CSV and put between two marks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.comparison import analysis, store
from benchmarks.comparison.analysis import Summary
from benchmarks.comparison.curves import mean_and_band
from benchmarks.comparison.store import Point, Runs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "comparison.md"
BEGIN = "<!-- from benchmarks/comparison.csv: python benchmarks/estimators.py --table -->"
END = "<!-- end -->"
FIGURES = (
    ("forward FLOPs, best blockzo method against n-SPSA", None, "n-spsa", "flops", 3.0),
    ("forward FLOPs, best blockzo method against one-sided (5 directions each)", None, "one-sided", "flops", 3.0),
    ("forward FLOPs, `auto` against n-SPSA", "auto", "n-spsa", "flops", 3.0),
    ("forward FLOPs, `auto` against one-sided", "auto", "one-sided", "flops", 3.0),
    ("wall time, best blockzo method against eager MeZO", None, "eager-mezo", "seconds", 5.0),
    ("wall time, `auto` against eager MeZO", "auto", "eager-mezo", "seconds", 5.0),
    ("wall time, MeZO of blockzo against eager MeZO", "mezo", "eager-mezo", "seconds", None),
)


def markdown(runs: Runs, places: Sequence[Mapping[str, str]]) -> str:
    if not analysis.cases(runs):
        return "Nothing has been run yet."
    lines = _figures(runs)
    for case in analysis.cases(runs):
        lines += ["", *_case(runs, case)]
    where = sorted({f"{p['cpu']}, {p['workers']} process(es) of {p['threads']} thread(s)" for p in places})
    dates = sorted({p["date"] for p in places})
    versions = sorted({p["versions"] for p in places})
    commits = sorted({p["commit"] for p in places})
    lines += [
        "",
        f"Machine: {'; '.join(where)}. {'; '.join(versions)}. Dates: {', '.join(dates)}. Commits: {', '.join(commits)}.",
    ]
    return "\n".join(lines)


def _figures(runs: Runs) -> list[str]:
    lines = [
        "| times less to the accuracy that n-SPSA ends with | median | range | model, task and seed | bounds | goal | |",
        "|---|---|---|---|---|---|---|",
    ]
    for share in analysis.SHARES:
        for text, method, baseline, cost, goal in FIGURES:
            found = Summary.of(analysis.over_cases(runs, method, baseline, cost, share))
            name = text if share == 1.0 else f"{text}, to {share:.0%} of n-SPSA's gain"
            if found is None:
                lines.append(f"| {name} | not measured | | | | | |")
                continue
            met = "" if goal is None else "met" if found.median >= goal else "**missed**"
            bounds = f"{found.bounded}, and {found.neither} that neither reached"
            wanted = "" if goal is None else f"{goal:g}"
            span = f"{found.low:.2g} to {found.high:.2g}"
            lines.append(f"| {name} | {found.median:.2f} | {span} | {found.count} | {bounds} | {wanted} | {met} |")
    return lines


def _case(runs: Runs, case: analysis.Case) -> list[str]:
    model, task, shots, budget = case
    by_method = analysis.of_case(runs, case)
    accuracy = analysis.target(by_method)
    start = [p[0].accuracy for seeds in by_method.values() for p in seeds.values()]
    told = (
        "n-SPSA gained nothing: no target"
        if accuracy is None
        else f"target {accuracy:.3f}, the end of n-SPSA over {len(by_method[analysis.REFERENCE])} seed(s)"
    )
    lines = [
        f"### {model}, {task}",
        "",
        f"{shots} a class, budget {budget} forwards, accuracy before {statistics.fmean(start):.3f}; {told}.",
        "",
        "| method | rate | seeds | accuracy at the end | test loss | forwards to the target | seconds to it | got there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rates = analysis.chosen_rates(runs, case)
    for name, seeds in by_method.items():
        mean, half = mean_and_band([analysis.end_accuracy(points) for points in seeds.values()])
        loss = statistics.fmean(points[-1].loss for points in seeds.values())
        row = [name, rates[name].replace("|", " / "), str(len(seeds)), f"{mean:.3f} ± {half:.3f}", f"{loss:.3f}"]
        row += ["", "", ""] if accuracy is None else _costs(seeds, accuracy)
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _costs(seeds: Mapping[int, Sequence[Point]], accuracy: float) -> list[str]:
    row = []
    for cost in ("spent", "seconds"):
        costs = [analysis.reached(points, accuracy, cost) for points in seeds.values()]
        middle = statistics.median(costs)
        row.append("not reached" if math.isinf(middle) else f"{middle:.0f}")
    there = sum(not math.isinf(analysis.reached(points, accuracy, "flops")) for points in seeds.values())
    return [*row, f"{there} of {len(seeds)}"]


def write(path: Path = store.FILE, page: Path = PAGE) -> None:
    """Puts the tables between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page.name} lacks the marks {BEGIN} and {END}; expected both, once")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = markdown(store.read(path), store.places(path))
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
