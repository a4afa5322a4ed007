"""The command `blockzo simulate`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from blockzo.cli import options as o
from blockzo.cli.main import stoppable
from blockzo.cli.option_names import typed

CLIENTS, PRIVACY = "Clients and rounds", "Privacy"


def simulate(
    context: typer.Context,
    model: o.ModelName = "smollm2-135m",
    task: o.TaskName = "sst2",
    clients: Annotated[
        int | None,
        Option(
            help="Virtual clients; 8 by default, and with --partition column as many as it has values.",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    sample: Annotated[int | None, Option(help="Clients asked in a round; 0 asks all.", rich_help_panel=CLIENTS)] = 2,
    rounds: Annotated[int, Option("--rounds", "-n", help="Rounds.", rich_help_panel=CLIENTS)] = 100,
    local_steps: Annotated[
        int, Option(help="Estimates of a client in a round; it moves on its own between them.", rich_help_panel=CLIENTS)
    ] = 1,
    partition: Annotated[
        str, Option(help="Rows of the clients: iid, dirichlet, label or column.", rich_help_panel=CLIENTS)
    ] = "dirichlet",
    alpha: Annotated[float, Option(help="dirichlet: small for few labels a client.", rich_help_panel=CLIENTS)] = 0.5,
    column: Annotated[
        str | None, Option(help="column: of the training file, one client a value.", rich_help_panel=CLIENTS)
    ] = None,
    engine: Annotated[
        str, Option(help="zo (seeds and scalars) or fedavg (first-order baseline).", rich_help_panel=CLIENTS)
    ] = "zo",
    logit_adjustment: Annotated[
        bool,
        Option(
            "--logit-adjustment",
            help="A client's loss allows for its own label shares, so that skewed clients do not push the bias.",
            rich_help_panel=CLIENTS,
        ),
    ] = False,
    own_directions: Annotated[
        bool, Option("--own-directions", help="Every client has directions of its own.", rich_help_panel=CLIENTS)
    ] = False,
    aggregate: Annotated[
        str, Option(help="mean, trimmed-mean, median or sign (one bit each way).", rich_help_panel=CLIENTS)
    ] = "mean",
    trim: Annotated[float, Option(help="trimmed-mean: share left out at either end.", rich_help_panel=CLIENTS)] = 0.25,
    weighting: Annotated[
        str, Option(help="mean, sign: weigh clients by examples, or equal.", rich_help_panel=CLIENTS)
    ] = "examples",
    seed_pool: Annotated[
        int,
        Option(
            help="Directions that the run has in all, in each block; 0: new ones every round.", rich_help_panel=CLIENTS
        ),
    ] = 0,
    privacy: Annotated[
        str | None,
        Option(help="central or local: who adds the noise of differential privacy.", rich_help_panel=PRIVACY),
    ] = None,
    clip: Annotated[
        float | None, Option(help="L2 norm that a client's scalars are cut to.", rich_help_panel=PRIVACY)
    ] = None,
    noise_multiplier: Annotated[
        float | None, Option(help="Standard deviation of the noise over --clip.", rich_help_panel=PRIVACY)
    ] = None,
    delta: Annotated[float, Option(help="Of (epsilon, delta).", rich_help_panel=PRIVACY)] = 1e-5,
    secure_sum: Annotated[
        bool,
        Option("--secure-sum", help="The server sees sums of the clients' scalars only.", rich_help_panel=PRIVACY),
    ] = False,
    policy: Annotated[
        str | None,
        Option(help="JSON file of what every client takes part in; others are refused.", rich_help_panel=PRIVACY),
    ] = None,
    drop: Annotated[float, Option(help="Share of answers that get lost.", rich_help_panel=CLIENTS)] = 0.0,
    liars: Annotated[float, Option(help="Share of clients that send random scalars.", rich_help_panel=CLIENTS)] = 0.0,
    train: o.Train = None,
    validation: o.Validation = None,
    data_dir: o.DataDir = None,
    template: o.Template = None,
    labels: o.Labels = None,
    label_column: o.LabelColumn = None,
    text_column: o.TextColumn = None,
    control_tokens: o.ControlTokens = False,
    train_where: o.TrainWhere = None,
    train_rows: o.TrainRows = None,
    shots: o.Shots = None,
    holdout: o.Holdout = None,
    final_rows: o.FinalRows = None,
    max_length: o.MaxLength = None,
    overflow: o.Overflow = "truncate",
    dtype: o.Dtype = "float32",
    head: o.Head = "auto",
    trust_remote_code: o.TrustRemoteCode = False,
    trainable: o.Trainable = None,
    fallback_model: o.Fallback = None,
    method: o.MethodName = "spzo",
    blocks: o.BlockCount = None,
    split: o.Split = None,
    outer: o.Outer = 1,
    inner: o.Inner = 4,
    variant: o.Variant = "coupled",
    one_sided: o.OneSided = False,
    directions: o.Directions = None,
    levels: o.Levels = None,
    lr: o.Rate = None,
    schedule: o.Schedule = "constant",
    warmup: o.Warmup = 0,
    eps: o.Eps = "1e-3",
    distribution: o.Distribution = "rademacher",
    weight_decay: o.WeightDecay = 0.0,
    stochastic_rounding: o.StochasticRounding = False,
    batch: o.Batch = 16,
    eval_every: o.EvalEvery = None,
    eval_rows: o.EvalRows = 256,
    pool: o.Pool = 16,
    seed: o.Seed = 0,
    threads: o.Threads = None,
    output: o.Output = None,
    resume: o.Resume = False,
    as_json: o.Json = False,
) -> None:
    """Federated rounds of virtual clients in one process; writes accuracy against rounds, FLOPs and bytes."""
    from blockzo import simulate as simulation
    from blockzo.finetune.progress import reporter
    from blockzo.finetune.settings import Settings

    folder = output or Path("runs") / f"simulate-{task}-{method}-{seed}"

    def act() -> dict[str, Any]:
        if resume:
            return simulation.resume(folder, reporter(), fallback_model, _as_fields(typed(context)))
        given = _as_fields(context.params)
        settings = Settings(**_those_of(Settings, given))
        federation = simulation.Federation(**_those_of(simulation.Federation, given))
        return simulation.simulate(settings, federation, folder, reporter(), fallback_model)

    result = stoppable("simulate", folder, as_json, act)
    print(json.dumps(result, indent=2) if as_json else told(result))


def _as_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Options as fields of Settings and Federation: rounds are steps, and a sample of 0 is all."""
    fields_of = {"steps" if name == "rounds" else name: value for name, value in given.items()}
    if fields_of.get("sample") == 0:
        fields_of["sample"] = None
    return fields_of


def _those_of(form: Any, given: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(form)}
    return {name: value for name, value in given.items() if name in names}


def told(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    rows = result["rows_of_clients"]
    lines = [
        f"before  {_scores(result['before'])}",
        f"after   {_scores(result['after'])}",
        f"{result['rounds']} rounds of {result['method']}, {result['clients']} clients of {rows['least']} to {rows['most']} rows",
        *(
            []
            if result["epsilon"] is None
            else [f"epsilon {result['epsilon']:.3g} at delta {result['federation']['delta']:g}"]
        ),
        f"{result['flops']:.3g} FLOPs, {result['bytes_up_of_an_answer']:.0f} bytes up and "
        f"{result['bytes_down_of_an_answer']:.0f} down an answer, {result['seconds']:.0f} s",
        *(f"{name:<7} {path}" for name, path in result["files"].items()),
    ]
    return "\n".join(lines)


def _scores(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items() if name != "rows")
