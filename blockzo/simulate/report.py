"""What a simulation leaves: summary.json, rounds.csv, and curves of accuracy against rounds, FLOPs and bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockzo.finetune import output
from blockzo.finetune.block_facts import block_facts
from blockzo.finetune.metrics import Scores

if TYPE_CHECKING:
    from blockzo.simulate.run import Simulation

TABLE = "rounds.csv"
COLUMNS = (
    *("step", "loss", "clients", "flops", "up", "down", "forwards", "overhead", "seconds", "epsilon"),
    *("eval_rows", "eval_loss", "accuracy", "calibrated_accuracy", "auc"),
)
AXES = (("step", "rounds"), ("flops", "FLOPs of all clients"), ("up", "bytes up"), ("down", "bytes down"))


def write_csv(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row a round, from 0; `flops`, `up`, `down` (bytes), `forwards` and `overhead` (seconds) are sums so far."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({name: "" if value is None else value for name, value in line.items()} for line in lines)

    def write(place: Path) -> None:
        place.write_text(text.getvalue(), encoding="utf-8")

    output.write_whole(path, write)


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Held-out accuracy (or loss) in four panels; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    scored = [line for line in lines if "eval_loss" in line]
    what = "accuracy" if "accuracy" in scored[0] else "eval_loss"
    figure = Figure(figsize=(9, 6), layout="constrained")
    for panel, (name, label) in zip(figure.subplots(2, 2).flat, AXES, strict=True):
        panel.plot([line[name] for line in scored], [line[what] for line in scored], marker=".")
        panel.set_xlabel(label)
        panel.set_ylabel("held-out " + what.replace("eval_", ""))
        panel.grid(alpha=0.3)
    output.write_whole(path, lambda place: figure.savefig(place, format="png", dpi=120))
    return True


def summary(
    run: Simulation,
    lines: Sequence[Mapping[str, Any]],
    before: Scores,
    after: Scores,
    drawn: bool,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The result; docs/federated.md says what each entry is."""
    last = lines[-1]
    answers = sum(line["clients"] for line in lines)
    sizes = sorted(len(rows) for rows in run.parts)
    files = {"model": output.MODEL, "metrics": output.METRICS, "table": TABLE}
    if run.federation.engine == "zo":
        files["journal"] = output.JOURNAL
    if drawn:
        files["curve"] = output.CURVE
    return {
        "schema": 1,
        "command": "simulate",
        "model": run.settings.model,
        "task": run.settings.task,
        "method": str(run.settings.estimator()) if run.federation.engine == "zo" else "FedAvg",
        "blocks": block_facts(run.blocks),
        "rounds": last["step"],
        "clients": len(run.parts),
        "rows_of_clients": {"least": sizes[0], "median": sizes[len(sizes) // 2], "most": sizes[-1]},
        "before": before.as_dict(),
        "after": after.as_dict(),
        "flops": last["flops"],
        "bytes_up": last["up"],
        "bytes_down": last["down"],
        "bytes_up_of_an_answer": last["up"] / max(1, answers),
        "bytes_down_of_an_answer": last["down"] / max(1, answers),
        "epsilon": last.get("epsilon"),
        "seconds": last["seconds"],
        "seconds_of_forwards": last["forwards"],
        "overhead": last["overhead"] / last["forwards"] if last["forwards"] else None,
        **facts,
        "settings": run.settings.as_dict(),
        "federation": run.federation.as_dict(),
        "output": str(run.folder),
        "files": {name: str(run.folder / file) for name, file in files.items()},
    }
