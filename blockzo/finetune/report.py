"""What a run leaves for people and machines: summary.json and the curve of loss and accuracy against forward FLOPs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockzo import Journal
from blockzo.finetune import output
from blockzo.finetune.best import best
from blockzo.finetune.block_facts import block_facts
from blockzo.finetune.loop import Training
from blockzo.finetune.models.loading import save, weight_bytes

SCHEMA = 1


def write(training: Training, journal: Journal, metrics: output.Metrics) -> dict[str, Any]:
    """Model, curve and summary.json into the run's folder; returns what summary.json holds."""
    training.reporter.say(f"writing {training.folder}")
    output.write_whole(training.folder / output.MODEL, lambda place: save(training.prepared.loaded, place))
    drawn = draw_curve(metrics.lines, training.folder / output.CURVE)
    if not drawn:
        training.warn(
            "matplotlib is not installed, so there is no curve.png; pip install 'blockzo[finetune]' brings it"
        )
    assert training.before is not None and training.after is not None
    found = summary(training, journal, metrics.lines, drawn)
    output.write_json(training.folder / output.SUMMARY, found)
    return found


def summary(training: Training, journal: Journal, lines: Sequence[Mapping[str, Any]], drawn: bool) -> dict[str, Any]:
    """The result of a run; docs/finetune.md says what each entry is."""
    assert training.before is not None and training.after is not None
    settings = training.settings
    folder = training.folder
    files = {"model": output.MODEL, "journal": output.JOURNAL, "metrics": output.METRICS, "curve": output.CURVE}
    if not drawn:
        del files["curve"]
    return {
        "schema": SCHEMA,
        "command": "finetune",
        "model": settings.model,
        "kind": training.prepared.loaded.kind,
        "task": settings.task,
        "peft": None if training.prepared.loaded.adapter is None else training.prepared.loaded.adapter.as_dict(),
        "method": str(settings.estimator()),
        "blocks": block_facts(training.blocks),
        "parameters": training.parameters(),
        "steps": training.zo.step_number,
        "before": training.before.as_dict(),
        "after": training.after.as_dict(),
        "best": best(lines),
        "flops": lines[-1]["flops"],
        "forwards": sum(len(record.losses) for record in journal.records()),
        "seconds": lines[-1]["seconds"],
        "signal": signal(lines),
        "memory": {
            **training.peaks,
            "weights": weight_bytes(training.prepared.model),
            "trained": training.trained_bytes(),
        },
        "base_digest": training.base_digest,
        "final_digest": journal.final_digest,
        "exact": journal.exact,
        "journal_bytes": (folder / output.JOURNAL).stat().st_size,
        "threads": training.header()["threads"],
        "device": training.header()["device"],
        "versions": training.header()["versions"],
        "settings": settings.as_dict(),
        "data": training.prepared.data_facts(),
        "warnings": list(training.warnings),
        "output": str(folder),
        "files": {name: str(folder / file) for name, file in files.items()},
    }


def signal(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Median signal-to-noise ratio of the steps, and the share of weights that the last measured update left unmoved."""
    ratios = [line["snr"] for line in lines if line.get("snr") is not None]
    unmoved = [line["unmoved"] for line in lines if "unmoved" in line]
    return {"snr": statistics.median(ratios) if ratios else None, "unmoved": unmoved[-1] if unmoved else None}


def draw_curve(lines: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Loss (every step, and smoothed) and held-out accuracy against forward FLOPs; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    left = figure.subplots()
    steps = [line for line in lines if line["loss"] is not None]
    scored = [line for line in lines if "eval_loss" in line]
    flops = [line["flops"] for line in steps]
    losses = [line["loss"] for line in steps]
    left.plot(flops, losses, color="0.8", linewidth=0.8, label="training loss")
    left.plot(flops, smoothed(losses, max(1, len(losses) // 20)), color="tab:blue", label="training loss, smoothed")
    left.plot(
        [s["flops"] for s in scored],
        [s["eval_loss"] for s in scored],
        "o--",
        color="tab:cyan",
        ms=3,
        label="held-out loss",
    )
    left.set_xlabel("forward FLOPs")
    left.set_ylabel("loss")
    handles, labels = left.get_legend_handles_labels()
    if scored and "accuracy" in scored[0]:
        right = left.twinx()
        right.plot(
            [s["flops"] for s in scored], [s["accuracy"] for s in scored], "s-", color="tab:red", ms=3, label="accuracy"
        )
        right.set_ylabel("held-out accuracy")
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    left.legend(handles, labels, fontsize="small")
    output.write_whole(path, lambda place: figure.savefig(place, dpi=120, format="png"))
    return True


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to `width`-1 before it."""
    result = []
    for i in range(len(values)):
        window = values[max(0, i - width + 1) : i + 1]
        result.append(sum(window) / len(window))
    return result
