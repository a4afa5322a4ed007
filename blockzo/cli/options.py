"""Options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

DATA, MODEL, METHOD, RUN = "Task and data", "Model", "Method", "Run"
Json = Annotated[bool, Option("--json", help="The result as JSON on stdout; progress stays on stderr.")]
Fallback = Annotated[
    str | None,
    Option(help="Another model where a built-in one cannot be had (for demonstrations).", rich_help_panel=MODEL),
]
ModelName = Annotated[
    str,
    Option(
        "--model",
        "-m",
        help="Folder, GGUF file, hub name, or built in: smollm2-135m, minilm-l6, stories15m.",
        rich_help_panel=MODEL,
    ),
]
TaskName = Annotated[
    str,
    Option(help="sst2, sst5, rte, trec, boolq, cb, agnews, custom (own data) or lm (text).", rich_help_panel=DATA),
]
Validation = Annotated[str | None, Option(help="Held-out data: .tsv, .csv or .jsonl (.gz).", rich_help_panel=DATA)]
DataDir = Annotated[str | None, Option(help="Folder with the data of ready-made tasks.", rich_help_panel=DATA)]
Template = Annotated[str | None, Option(help='Prompt, for example "{text} It was {label}."', rich_help_panel=DATA)]
Labels = Annotated[str | None, Option(help='Label words: "0=terrible,1=great".', rich_help_panel=DATA)]
LabelColumn = Annotated[str | None, Option(help="Column with the label, where not label.", rich_help_panel=DATA)]
TextColumn = Annotated[
    str | None, Option(help="Column that the template's text stands for; the text of lm rows.", rich_help_panel=DATA)
]
ControlTokens = Annotated[
    bool,
    Option("--control-tokens", help="Let </s> and the like in the data become control tokens.", rich_help_panel=DATA),
]
TrustRemoteCode = Annotated[
    bool, Option("--trust-remote-code", help="Run Python code that comes with the model.", rich_help_panel=MODEL)
]
MaxLength = Annotated[
    int | None, Option(help="Most tokens of a row; the model's limit by default.", rich_help_panel=DATA)
]
Overflow = Annotated[str, Option(help="Longer rows: truncate (with a warning) or error.", rich_help_panel=DATA)]
Dtype = Annotated[str, Option(help="float32, bfloat16 or float16.", rich_help_panel=MODEL)]
Head = Annotated[
    str, Option(help="auto, words (language-model head) or mean (pooling and a linear layer).", rich_help_panel=MODEL)
]
Threads = Annotated[int | None, Option(help="CPU threads.", rich_help_panel=RUN)]
FinalRows = Annotated[int | None, Option(help="Held-out rows that are used; all by default.", rich_help_panel=DATA)]
Seed = Annotated[int, Option(help="Of noise, batches and chosen rows.", rich_help_panel=RUN)]
Train = Annotated[
    str | None, Option(help="Training data: .tsv, .csv or .jsonl (.gz); text for lm.", rich_help_panel=DATA)
]
TrainWhere = Annotated[
    str | None, Option(help="Only training rows with these values: k=16,seed=13,split=train.", rich_help_panel=DATA)
]
TrainRows = Annotated[int | None, Option(help="So many training rows, chosen by seed.", rich_help_panel=DATA)]
Shots = Annotated[int | None, Option(help="So many training rows of every label.", rich_help_panel=DATA)]
Holdout = Annotated[int | None, Option(help="Rows held out where there is no validation file.", rich_help_panel=DATA)]
Trainable = Annotated[
    str | None, Option(help="Train only parameters with such names: *norm*,lm_head*.", rich_help_panel=METHOD)
]
MethodName = Annotated[str, Option(help="mezo, spsa, spzo, one-sided, fzoo, tree or auto.", rich_help_panel=METHOD)]
BlockCount = Annotated[int | None, Option(help="Cut the layers into so many equal blocks.", rich_help_panel=METHOD)]
Split = Annotated[
    str | None, Option(help="Where blocks begin: layers (12,24), fractions (0.5), head.", rich_help_panel=METHOD)
]
Outer = Annotated[int, Option(help="spzo: directions of the first block.", rich_help_panel=METHOD)]
Inner = Annotated[int, Option(help="spzo: directions of the second block for each.", rich_help_panel=METHOD)]
Variant = Annotated[str, Option(help="spzo: coupled, crossed or decoupled.", rich_help_panel=METHOD)]
OneSided = Annotated[
    bool, Option("--one-sided", help="spzo, tree: sign + only, against one unmoved loss.", rich_help_panel=METHOD)
]
Directions = Annotated[int | None, Option(help="spsa, one-sided, fzoo: directions a step.", rich_help_panel=METHOD)]
Levels = Annotated[str | None, Option(help="tree: directions of every block: 1,2,4.", rich_help_panel=METHOD)]
Rate = Annotated[
    str | None,
    Option(help="Learning rate (1e-6), or one a block: 1e-6,1e-4; auto: a factor (1).", rich_help_panel=METHOD),
]
Schedule = Annotated[str, Option(help="constant, linear or cosine.", rich_help_panel=METHOD)]
Warmup = Annotated[int, Option(help="Steps over which the rate rises.", rich_help_panel=METHOD)]
Eps = Annotated[str, Option(help="Size of the perturbation, or one a block.", rich_help_panel=METHOD)]
Distribution = Annotated[str, Option(help="rademacher or gaussian.", rich_help_panel=METHOD)]
WeightDecay = Annotated[float, Option(help="Decoupled, times the rate.", rich_help_panel=METHOD)]
StochasticRounding = Annotated[bool, Option(help="For 16-bit weights.", rich_help_panel=METHOD)]
Batch = Annotated[int, Option("--batch", "-b", help="Rows a step.", rich_help_panel=RUN)]
EvalEvery = Annotated[
    int | None, Option(help="Steps between evaluations; a tenth of the run by default.", rich_help_panel=RUN)
]
EvalRows = Annotated[int | None, Option(help="Held-out rows of these evaluations.", rich_help_panel=RUN)]
Pool = Annotated[
    int, Option(help="Batches sorted by length together; 1 for plain random batches.", rich_help_panel=RUN)
]
Output = Annotated[
    Path | None, Option("--output", "-o", help="New folder for everything; runs/TASK-METHOD-SEED.", rich_help_panel=RUN)
]
Resume = Annotated[bool, Option("--resume", help="Continue the run in --output.", rich_help_panel=RUN)]
