"""The tables of docs/paper-shapes.md, drawn from `benchmarks/results.csv` and nothing else."""

from __future__ import annotations

from benchmarks.harness import RESULTS, read
from benchmarks.shapes.formulas import METHODS, STATES
from benchmarks.shapes.models import PAPER, SHAPES

ROWS, TOKENS = 2, 32
"""Of the tables."""
AVERAGED = "federated averaging of all weights"
COLUMNS = {
    "GFLOP a step": ("GFLOP a step by formula", "{:,.0f}"),
    "counter off": ("counter off the formula", "{:.2%}"),
    "saved": ("FLOPs saved as counted", "{:.2f}"),
    "by the paper's formula": ("FLOPs saved by the paper's formula", "{:.2f}"),
    "peak over inference": ("peak RSS over inference", "{:.3f}"),
    "step over a forward": ("CPU seconds of a step over a plain forward", "{:.2f}"),
    "over as many FLOPs": ("over plain forwards of as many FLOPs", "{:.2f}"),
    "bytes up": ("bytes up a round", "{:,.0f}"),
    "bytes down": ("bytes down a round", "{:,.0f}"),
}
Row = dict[str, str]
Columns = dict[str, tuple[str, str]]
"""Heading -> metric, and how its value is written."""


def found() -> dict[tuple[str, str], Row]:
    """(case, metric) -> its row, of several machines the last measured one."""
    rows = [row for row in read(RESULTS) if row["benchmark"] in ("paper", "baselines")]
    return {(row["case"], row["metric"]): row for row in sorted(rows, key=lambda row: row["date"])}


def markdown() -> str:
    rows, lines = found(), []
    for name in PAPER:
        shape = SHAPES[name]
        cases = {what: f"{shape.case} {ROWS} x {TOKENS}, {what}" for what in (*METHODS, *STATES, AVERAGED)}
        lines += ["", f"### {shape.name}, {str(shape.dtype)[6:]}", "", *_table(rows, COLUMNS, cases)]
    return "\n".join(lines[1:])


def _table(rows: dict[tuple[str, str], Row], columns: Columns, cases: dict[str, str]) -> list[str]:
    """Lines and columns of which something was measured."""
    metrics = {metric for case, metric in rows if case in cases.values()}
    shown = {name: column for name, column in columns.items() if column[0] in metrics}
    lines = [_line(["", *shown]), _line(["---"] * (len(shown) + 1))]
    for what, case in cases.items():
        cells = [_cell(rows.get((case, metric)), form) for metric, form in shown.values()]
        if any(cells):
            lines.append(_line([what, *cells]))
    return lines


def _cell(row: Row | None, form: str) -> str:
    if row is None:
        return ""
    text, goal = form.format(float(row["p50"])), row["target"].removeprefix("<= ")
    missed = bool(goal) and float(row["p50"]) > float(goal)
    return f"**{text}**" if missed else f"{text} by formula" if "formula" in row["unit"] else text


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


BASELINES = {
    "GFLOP a step": ("GFLOP a step", "{:,.1f}"),
    "over a forward's": ("FLOPs of a step over a plain forward", "{:.2f}"),
    "seconds over a forward's": ("CPU seconds of a step over a plain forward", "{:.2f}"),
    "peak over inference": ("peak RSS over inference", "{:.2f}"),
    "bytes up a round": ("bytes up a round", "{:,.0f}"),
}


def page() -> str:
    """All that stands between the marks: a table a model, and one of the baselines where they were measured."""
    told = baselines()
    return f"{markdown()}\n\n### Baselines, OPT-125M float32, 2 x 32 tokens\n\n{told}" if told else markdown()


def baselines() -> str:
    from benchmarks.baselines.sides import SIDES

    rows, before = found(), f"{SHAPES['opt-125m'].case} 2 x 32, "
    lines = _table(rows, BASELINES, {name: before + name for name in SIDES})
    upstream = sorted((case, metric) for case, metric in rows if case.startswith(before) and " at " in case)
    if upstream:
        lines += ["", _line(["checkout", "against", "measured"]), _line(["---"] * 3)]
        for case, metric in upstream:
            times = f"{float(rows[case, metric]['p50']):.2f} times its CPU seconds"
            lines.append(_line([case.removeprefix(before), metric.removeprefix("times the CPU seconds of "), times]))
    return "\n".join(lines) if len(lines) > 2 else ""
