"""What a simulation leaves: summary.json, rounds.csv, and curves of accuracy against rounds, FLOPs and bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockzo.finetune import output
from blockzo.finetune.block_facts import block_facts
from blockzo.finetune.metrics import HeldOutScores
from blockzo.finetune.models.loading import save
from blockzo.simulate.rounds import Simulation

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


def write(
    simulation: Simulation,
    lines: Sequence[Mapping[str, Any]],
    before: HeldOutScores,
    after: HeldOutScores,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Model, table, curves and summary.json into the simulation's folder; returns what summary.json holds."""
    folder = simulation.folder
    simulation.reporter.say(f"writing {folder}")
    output.write_whole(folder / output.MODEL, lambda place: save(simulation.prepared.loaded, place))
    write_csv(lines, folder / TABLE)
    drawn = draw(lines, folder / output.CURVE)
    found = summary(simulation, lines, before, after, drawn, facts)
    output.write_json(folder / output.SUMMARY, found)
    return found


def summary(
    simulation: Simulation,
    lines: Sequence[Mapping[str, Any]],
    before: HeldOutScores,
    after: HeldOutScores,
    drawn: bool,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The result; docs/federated.md says what each entry is."""
    last = lines[-1]
    answers = sum(line["clients"] for line in lines)
    sizes = sorted(len(rows) for rows in simulation.parts)
    files = {"model": output.MODEL, "metrics": output.METRICS, "table": TABLE}
    if simulation.federation.engine == "zo":
        files["journal"] = output.JOURNAL
    if drawn:
        files["curve"] = output.CURVE
    return {
        "schema": 1,
        "command": "simulate",
        "model": simulation.settings.model,
        "task": simulation.settings.task,
        "method": str(simulation.settings.estimator()) if simulation.federation.engine == "zo" else "FedAvg",
        "peft": None if simulation.prepared.loaded.adapter is None else simulation.prepared.loaded.adapter.as_dict(),
        "blocks": block_facts(simulation.blocks),
        "rounds": last["step"],
        "clients": len(simulation.parts),
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
        "settings": simulation.settings.as_dict(),
        "federation": simulation.federation.as_dict(),
        "output": str(simulation.folder),
        "files": {name: str(simulation.folder / file) for name, file in files.items()},
    }
