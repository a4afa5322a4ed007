"""The commands and their options; each hands over to `blockzo.finetune` or `blockzo.cli.environment`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

import blockzo
from blockzo.cli.main import stoppable
from blockzo.cli.option_names import Command, typed
from blockzo.cli.options import (
    METHOD,
    RUN,
    Batch,
    BlockCount,
    ControlTokens,
    DataDir,
    Directions,
    Distribution,
    Dtype,
    Eps,
    EvalEvery,
    EvalRows,
    Fallback,
    FinalRows,
    Head,
    Holdout,
    Inner,
    Json,
    LabelColumn,
    Labels,
    Levels,
    MaxLength,
    MethodName,
    ModelName,
    OneSided,
    Outer,
    Output,
    Overflow,
    Pool,
    Rate,
    Resume,
    Schedule,
    Seed,
    Shots,
    Split,
    StochasticRounding,
    TaskName,
    Template,
    TextColumn,
    Threads,
    Train,
    Trainable,
    TrainRows,
    TrainWhere,
    TrustRemoteCode,
    Validation,
    Variant,
    Warmup,
    WeightDecay,
)
from blockzo.cli.simulate import simulate
from blockzo.journal.outside import printable

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"blockzo {blockzo.__version__}")
        raise typer.Exit


@app.callback()
def _blockzo(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="The version of blockzo, and nothing else.")
    ] = False,
) -> None:
    """Fine-tunes language models with forward passes only (docs/finetune.md)."""


@app.command(cls=Command)
def finetune(
    context: typer.Context,
    model: ModelName = "smollm2-135m",
    task: TaskName = "sst2",
    train: Train = None,
    validation: Validation = None,
    data_dir: DataDir = None,
    template: Template = None,
    labels: Labels = None,
    label_column: LabelColumn = None,
    text_column: TextColumn = None,
    control_tokens: ControlTokens = False,
    train_where: TrainWhere = None,
    train_rows: TrainRows = None,
    shots: Shots = None,
    holdout: Holdout = None,
    final_rows: FinalRows = None,
    max_length: MaxLength = None,
    overflow: Overflow = "truncate",
    dtype: Dtype = "float32",
    head: Head = "auto",
    trust_remote_code: TrustRemoteCode = False,
    trainable: Trainable = None,
    fallback_model: Fallback = None,
    method: MethodName = "spzo",
    blocks: BlockCount = None,
    split: Split = None,
    outer: Outer = 1,
    inner: Inner = 4,
    variant: Variant = "coupled",
    one_sided: OneSided = False,
    directions: Directions = None,
    levels: Levels = None,
    lr: Rate = None,
    schedule: Schedule = "constant",
    warmup: Warmup = 0,
    eps: Eps = "1e-3",
    distribution: Distribution = "rademacher",
    weight_decay: WeightDecay = 0.0,
    stochastic_rounding: StochasticRounding = False,
    in_place: Annotated[
        bool,
        Option(help="Write and restore weights to evaluate: not exact, no bitwise replay.", rich_help_panel=METHOD),
    ] = False,
    batch: Batch = 16,
    steps: Annotated[int, Option("--steps", "-n", help="Steps.", rich_help_panel=RUN)] = 100,
    eval_every: EvalEvery = None,
    eval_rows: EvalRows = 256,
    pool: Pool = 16,
    seed: Seed = 0,
    threads: Threads = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool,
        Option("--dry-run", help="Print blocks, FLOPs, memory and time of a step; write nothing.", rich_help_panel=RUN),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a task by forward passes; writes the model, a small journal and a report."""
    from blockzo import finetune as tuning
    from blockzo.finetune.plan import describe

    given = typed(context)
    reporter = _reporter()
    folder = output or Path("runs") / f"{task}-{method}-{seed}"
    if resume:
        changed = {name: value for name, value in given.items() if name in _names()}
        result = stoppable(
            "finetune", folder, as_json, lambda: tuning.resume(folder, changed, reporter, fallback_model)
        )
    else:
        settings = tuning.Settings(**{name: value for name, value in context.params.items() if name in _names()})
        if dry_run:
            plan = tuning.dry_run(settings, reporter, fallback_model)
            _print(plan, as_json, describe(plan))
            return
        result = stoppable(
            "finetune", folder, as_json, lambda: tuning.finetune(settings, folder, reporter, fallback_model)
        )
    _print(result, as_json, _told(result))


app.command(cls=Command)(simulate)


@app.command(cls=Command)
def evaluate(
    context: typer.Context,
    model: Annotated[str, Argument(help="Folder, GGUF file, hub name or built-in model.")],
    task: TaskName = "sst2",
    train: Annotated[str | None, Option(help="Data to hold rows out of, where there is no validation file.")] = None,
    validation: Validation = None,
    data_dir: DataDir = None,
    template: Template = None,
    labels: Labels = None,
    label_column: LabelColumn = None,
    text_column: TextColumn = None,
    control_tokens: ControlTokens = False,
    final_rows: FinalRows = None,
    max_length: MaxLength = None,
    overflow: Overflow = "truncate",
    dtype: Dtype = "float32",
    head: Head = "auto",
    trust_remote_code: TrustRemoteCode = False,
    fallback_model: Fallback = None,
    batch: Annotated[int, Option("--batch", "-b", help="Rows at a time.")] = 32,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model on the held-out rows of a task."""
    from blockzo import finetune as tuning

    settings = tuning.Settings(**{name: value for name, value in context.params.items() if name in _names()})
    result = tuning.evaluate(settings, _reporter(), fallback_model)
    _print(result, as_json, _scores(result["scores"]))


@app.command(cls=Command)
def replay(
    base: Annotated[str, Argument(help="The model that the run began with.")],
    journal: Annotated[Path, Argument(help="Its journal.bz.")],
    out: Annotated[Path, Argument(help="New folder for the fine-tuned model.")],
    partial: Annotated[bool, Option("--partial", help="Allow a journal of a run that was not finished.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Rebuild a fine-tuned model from its base and its journal, bit for bit."""
    from blockzo import finetune as tuning

    result = tuning.replay(base, journal, out, partial, _reporter(), trust_remote_code)
    checked = (
        "verified against the journal's digest" if result["verified"] else "not verified: the journal has no exact end"
    )
    _print(
        result, as_json, f"{result['output']}: {result['steps']} steps replayed, weights {result['digest']} ({checked})"
    )


@app.command(cls=Command)
def env(as_json: Json = False) -> None:
    """Versions, CPU features, backends of every operation, and a self-test."""
    from blockzo.cli import environment

    raise SystemExit(environment.main(json=as_json))


@app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str | None, Argument(help="A file of benchmarks/ without .py; none lists them.")] = None,
    as_json: Json = False,
) -> None:
    """Run a benchmark of the repository's benchmarks/ folder; further arguments go to it."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    found = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    if not found:
        raise ValueError(f"{folder} holds no benchmarks; they are part of the repository, not of the installed package")
    if name is None:
        _print({"benchmarks": list(found)}, as_json, "\n".join(found))
        return
    if name not in found:
        raise ValueError(f"benchmark is {name!r}; expected one of {', '.join(found)}")
    raise SystemExit(subprocess.run([sys.executable, str(found[name]), *context.args]).returncode)


def _names() -> set[str]:
    from blockzo.finetune.settings import Settings

    return {field.name for field in fields(Settings)}


def _reporter() -> Any:
    from blockzo.finetune.progress import reporter

    return reporter()


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result, indent=2) if as_json else printable(text, 1 << 20))


def _told(result: dict[str, Any]) -> str:
    lines = [
        f"before  {_scores(result['before'])}",
        f"after   {_scores(result['after'])}",
        f"{result['steps']} steps, {result['flops']:.3g} forward FLOPs, {result['seconds']:.0f} s; "
        f"journal {result['journal_bytes'] / 1000:.1f} KB for {result['parameters'] / 1e6:.1f} M weights",
        _signal(result["signal"]),
        *(f"{name:<7} {path}" for name, path in result["files"].items()),
    ]
    return "\n".join(lines)


def _signal(values: dict[str, float | None]) -> str:
    moved = "" if values["unmoved"] is None else f"an update moves {1 - values['unmoved']:.1%} of the weights"
    ratio = "" if values["snr"] is None else f"the losses of a step differ by {values['snr']:.3g} roundings (median); "
    return ratio + moved


def _scores(values: dict[str, float]) -> str:
    names = {
        "accuracy": "accuracy",
        "calibrated_accuracy": "calibrated",
        "auc": "AUC",
        "loss": "loss",
        "perplexity": "perplexity",
    }
    told = [f"{name} {values[key]:.3f}" for key, name in names.items() if key in values]
    return f"{'  '.join(told)}  ({values['rows']} rows)"
