"""What a person reads at the end of a run: what was won, what it cost, what to do next. All of it computed from the summary."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from blockzo.finetune.data.tasks import OTHERS, WRITTEN_TASKS, find_task
from blockzo.finetune.option import EVALUATE, options_of
from blockzo.finetune.reward import NAME as REWARD
from blockzo.finetune.settings import Settings
from blockzo.finetune.text_figures import TEXT_FIGURES

BARS = "▁▂▃▄▅▆▇█"
HELD_OUT = ("train", "train_where", "holdout")
"""What says which rows are held out where no file holds them."""
OF_THE_MACHINE = ("model", "task", "batch", "threads", "device")
"""Options of `evaluate` that are said otherwise, or change no score."""
OF_THE_DATA = frozenset(
    "model task train validation data_dir template labels label_column text_column train_where train_rows shots holdout "
    "control_tokens eval_every eval_rows final_rows seed threads device columns "
    "metrics max_new_tokens trust_remote_code".split()
)
"""Settings that one's own data changes, or that change no step."""


def closing(result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]] = ()) -> str:
    """The last lines of a run for a person.

    Args:
        result: what summary.json holds.
        lines: those of metrics.jsonl, for the curve.
    """
    return "\n".join([*curve(lines), won(result), *peak(result), cost(result), *following(result)])


def won(result: Mapping[str, Any]) -> str:
    """The gain over the model before training, as it is or calibrated, whichever is better."""
    before, after, rows = result["before"], result["after"], result["after"]["rows"]
    # what was made better comes first
    written = (REWARD, result["settings"].get("objective"), *TEXT_FIGURES)
    figure = next((name for name in written if name in after and name in (REWARD, *TEXT_FIGURES)), None)
    if figure is not None:
        return (
            f"{figure} of the written answers was {before[figure]:.3f} before, {after[figure]:.3f} after, on {rows} held-out "
            "rows that were not trained on."
        )
    if "perplexity" in after:
        what = "windows" if result["settings"]["task"] == "lm" else "rows"
        return (
            f"Perplexity was {before['perplexity']:.2f} before, {after['perplexity']:.2f} after, on {rows} held-out {what} that "
            "were not trained on."
        )
    start, name = baseline(result)
    gain = 100 * (after["accuracy"] - start)
    # of two independent measurements; the rows are the same, so the true one is rather smaller
    error = 100 * math.sqrt(sum(p * (1 - p) / rows for p in (start, after["accuracy"])))
    verdict = "Won" if gain > error else "Lost" if gain < -error else "Nothing to speak of was won"
    more = ""
    if before.get("auc") is not None and after.get("auc") is not None:
        more = f" AUC, which no threshold changes, went from {before['auc']:.3f} to {after['auc']:.3f}."
    return (
        f"{verdict}: {gain:+.1f} points of accuracy over {name} ({start:.3f} to {after['accuracy']:.3f}), on {rows} held-out "
        f"rows that were not trained on; the sampling error of such a difference is up to {error:.1f} points.{more}"
    )


def peak(result: Mapping[str, Any]) -> list[str]:
    """Where the held-out rows liked an earlier model better than the last: its scores, and how to have it."""
    best = result.get("best")
    if best is None or best["step"] == result["steps"]:
        return []
    where = f"after step {best['step']}" if best["step"] else "before training"
    scores = [f"loss {best['eval_loss']:.3f}"]
    scores += [f"{name} {best[name]:.3f}" for name in ("accuracy", "perplexity") if name in best]
    again = command("replay", result["settings"]["model"], result["files"]["journal"], "best", "--steps", best["step"])
    return [
        f"Best: {where} the loss on {best['eval_rows']} held-out rows was lowest ({', '.join(scores)}; these rows chose it, so "
        f"they flatter it). The journal holds those weights:\n    {again}"
    ]


def baseline(result: Mapping[str, Any]) -> tuple[float, str]:
    """The accuracy that costs no training, and its name."""
    before = result["before"]
    name = "the untrained head" if result["kind"] == "head" else "zero-shot"
    calibrated = before.get("calibrated_accuracy")
    if calibrated is not None and calibrated >= before["accuracy"]:
        return calibrated, f"calibrated {name}"
    return before["accuracy"], name


def cost(result: Mapping[str, Any]) -> str:
    """Work, memory and bytes."""
    memory, journal = result["memory"], result["journal_bytes"]
    told = [
        f"{result['steps']} steps, {result['forwards']:,} losses, {result['flops'] / 1e12:.3g} TFLOP of forward passes",
        f"{clock(result['seconds'])} (minutes, seconds) with all scoring",
    ]
    if memory["training"] is not None and memory["inference"] is not None:
        over = memory["training"] / memory["inference"] - 1
        told.append(
            f"{size(memory['training'])} of memory at the peak, where scoring took {size(memory['inference'])} ({over:+.1%})"
        )
    kept = f"a journal of {size(journal)} for {result['parameters']:,} trained weights"
    if memory["trained"] < journal:
        # as files go, the weights themselves would do
        kept += f", which are {size(memory['trained'])} themselves"
    told.append(f"{kept} (the whole model: {size(memory['weights'])})")
    return f"Cost: {'; '.join(told)}."


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e3:,.1f} KB"


def following(result: Mapping[str, Any]) -> list[str]:
    """Commands: the same model from the journal, and the same method on one's own data."""
    told, files = result["settings"], result["files"]
    rebuilt = command("replay", told["model"], files["journal"], "rebuilt")
    lines = [f"Next: the same weights from the journal alone, bit for bit:\n    {rebuilt}"]
    if not result["exact"]:
        lines = [f"Next: the same weights, but for rounding, from the journal alone:\n    {rebuilt}"]
    if told["task"] in OTHERS or told["task"] in WRITTEN_TASKS:
        again = command("evaluate", files["model"], "--task", told["task"], *scoring(told))
        lines.append(f"Score it again, or with --validation on other rows:\n    {again}")
        return lines
    task = find_task(told["task"], told["template"], told["labels"], told["label_column"], told["text_column"])
    words = ",".join(f"{label}={word}" for label, word in task.words.items())
    data = ["--template", task.template.replace("\n", "\\n"), "--labels", words]
    files_of_own = ["--train", "mine.tsv", "--validation", "held-out.tsv"]
    own = command(
        "finetune",
        "--model",
        told["model"],
        "--task",
        "custom",
        *files_of_own,
        *data,
        *method(told),
        "--output",
        "runs/mine",
    )
    columns = " and ".join([*(f"`{name}`" for name in task.columns), f"`{task.label_column}`"])
    lines.append(f"Your own data (a header line with {columns}, tabs between; other words for your labels):\n    {own}")
    return lines


def scoring(told: Mapping[str, Any]) -> list[str]:
    """Options of `evaluate` that score the rows which the run held out, as it did."""
    left_out = (*OF_THE_MACHINE, *(HELD_OUT if told["validation"] is not None else ()))
    known = options_of(Settings)
    usual = {field.name: field.default for field in fields(Settings) if EVALUATE in known[field.name].commands}
    names = [name for name, value in {**usual, "dtype": "float32"}.items() if told[name] != value]
    return [part for name in names if name not in left_out for part in option(name, told[name])]


def method(told: Mapping[str, Any]) -> list[str]:
    """Options that make this run what it is, where they are not the defaults."""
    own = [field for field in fields(Settings) if field.name not in OF_THE_DATA and field.name != "method"]
    usual = {**{field.name: field.default for field in own}, "dtype": "float32"}
    changed = [part for name, value in usual.items() if told[name] != value for part in option(name, told[name])]
    return [*option("method", told["method"]), *changed]


def option(name: str, value: Any) -> list[str]:
    """As it is typed; nothing where there is no value."""
    if value is None or value is False:
        return []
    return [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])


def command(*words: object) -> str:
    return shlex.join(["blockzo", *map(str, words)])


def curve(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Held-out figures over the run as one line of bars each."""
    found = []
    for key, name in (("accuracy", "held-out accuracy"), ("eval_loss", "held-out loss")):
        values = [line[key] for line in lines if key in line]
        if len(values) > 2:
            found.append(
                f"{name:<17}  {values[0]:.3f} {bars(values)} {values[-1]:.3f}  ({lines[-1]['eval_rows']} rows)"
            )
    return found


def bars(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low or 1) * (len(BARS) - 1))] for value in values)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
