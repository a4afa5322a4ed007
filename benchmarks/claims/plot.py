"""One picture of what a suite found: every figure over the committed one, with its goal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims.judge import OUTSIDE, TOLD
from benchmarks.claims.suite import Finding


def draw(found: Sequence[Finding], path: Path) -> bool:
    """Medians with p20 to p80; committed spreads behind them; goals as lines. False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    shown = [
        (one.claim.name, judged, float(judged.against["p50"]))
        for one in found
        for judged in one.judged
        if judged.against is not None and judged.verdict != TOLD and float(judged.against["p50"]) > 0
    ]
    figure = Figure(figsize=(10, 1.2 + 0.45 * len(shown)), layout="constrained")
    panel = figure.subplots()
    for place, (_, judged, unit) in enumerate(shown):
        low, middle, high = (float(judged.row[name]) / unit for name in ("p20", "p50", "p80"))
        assert judged.against is not None
        begin, end = (float(judged.against[name]) / unit for name in ("p20", "p80"))
        panel.barh(place, max(end - begin, 0.002), left=begin, height=0.7, color="0.85")
        colour = "C3" if judged.verdict == OUTSIDE else "C0"
        panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], marker="o", color=colour, capsize=3)
        if judged.row["target"]:
            panel.plot(float(judged.row["target"].split()[1]) / unit, place, marker="|", markersize=16, color="k")
    names = [f"{name}: {judged.row['case']}\n{judged.row['metric']}" for name, judged, _ in shown]
    panel.set_yticks(range(len(shown)), names, fontsize=7)
    panel.invert_yaxis()
    panel.axvline(1.0, color="0.5", linewidth=0.8)
    panel.set_xlabel("measured over committed (grey: the committed p20 to p80; black: the goal; red: outside)")
    panel.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
