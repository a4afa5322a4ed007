"""Everything that a run is told, checked before anything is loaded; the journal's header holds it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from blockzo.contract import DISTRIBUTIONS, MAX_RANK, MOVED
from blockzo.finetune.data.tasks import OTHERS, TASKS, WRITTEN_TASKS
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.built_in import BUILT_IN
from blockzo.finetune.models.dtypes import AUTO, DTYPES, QUANTIZED
from blockzo.finetune.models.lora_options import parse_adapter
from blockzo.finetune.number_lists import counts, numbers, places
from blockzo.finetune.option import DATA, EVERY, FINETUNE, METHOD, MODEL, RUN, check, listed, option
from blockzo.finetune.text_figures import TEXT_FIGURES
from blockzo.journal.outside import MOST_BLOCKS, Refusal, build
from blockzo.journal.record import float32
from blockzo.methods import Method, by_option
from blockzo.methods.auto import Auto
from blockzo.optim.schedules import SCHEDULES

METHODS = (*sorted(by_option()), "auto")


def _takers(option: str) -> str:
    """The methods that have an option."""
    return ", ".join(name for name, cls in sorted(by_option().items()) if option in cls.options)


OVERFLOWS = {"truncate": "with a warning", "error": ""}
DTYPE_CHOICES = {AUTO: "float32 on a CPU, bfloat16 on a GPU", **dict.fromkeys(DTYPES, "")}
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
HEADS = {"auto": "", "words": "language-model head", "mean": "pooling and a linear layer"}
OBJECTIVES = {"loss": "", "accuracy": "of classes", **dict.fromkeys(TEXT_FIGURES, "of written answers")}
VARIANTS = ("coupled", "crossed", "decoupled")
MOST_LOSSES = 100_000
"""Of one step; far more than any run has use for."""


UNMEASURED = "1e-6"
"""The rate where none is given and none is measured: in rounds, for figures that are no smooth function of the weights, and for
a loss that does not change."""


@dataclass(frozen=True)
class Settings:
    """One run. Lists (`lr`, `eps`, `split`, `levels`) are text with commas, as on the command line; `None` means the default.

    Every field is an option of the command line (`blockzo.finetune.option`); docs/finetune.md has them as a table.
    """

    model: str = option(
        f"Folder, GGUF file, hub name, or built in: {', '.join(BUILT_IN)}.",
        MODEL,
        short="-m",
        suggested="smollm2-135m",
        free=True,
    )
    task: str = option(f"{', '.join([*TASKS, *WRITTEN_TASKS])}, {listed(OTHERS)}.", DATA, "sst2", commands=EVERY)
    train: str | None = option(
        "Training data: .tsv, .csv, .jsonl (.gz) or .parquet, hub:OWNER/NAME:SPLIT; text for lm.",
        DATA,
        None,
        commands=EVERY,
        free=True,
    )
    validation: str | None = option("Held-out data, as --train.", DATA, None, commands=EVERY, free=True)
    data_dir: str | None = option("Folder with the data of ready-made tasks.", DATA, None, commands=EVERY, free=True)
    template: str | None = option('Prompt, for example "{text} It was {label}."', DATA, None, commands=EVERY)
    labels: str | None = option('Label words: "0=terrible,1=great".', DATA, None, commands=EVERY)
    label_column: str | None = option("Column with the label, where not label.", DATA, None, commands=EVERY)
    text_column: str | None = option(
        "Column that the template's text stands for; the text of lm rows.", DATA, None, commands=EVERY
    )
    columns: str | None = option(
        "Columns by other names than the task's: question=query,answer=reply.", DATA, None, commands=EVERY
    )
    metrics: str | None = option(
        f"Of written answers: {', '.join(TEXT_FIGURES)}, with commas.", DATA, None, commands=EVERY
    )
    max_new_tokens: int | None = option("Most tokens of a written answer; 32.", DATA, None, commands=EVERY, least=1)
    control_tokens: bool = option(
        "Let </s> and the like in the data become control tokens.", DATA, False, commands=EVERY
    )
    train_where: str | None = option(
        "Only training rows with these values: k=16,seed=13,split=train.", DATA, None, commands=EVERY
    )
    train_rows: int | None = option("So many training rows, chosen by seed.", DATA, None, least=1)
    shots: int | None = option("So many training rows of every label.", DATA, None, least=1)
    holdout: int | None = option(
        "Rows held out where there is no validation file.", DATA, None, commands=EVERY, least=1
    )
    final_rows: int | None = option(
        "Held-out rows that are used; all by default.", DATA, None, commands=EVERY, least=1, free=True
    )
    max_length: int | None = option(
        "Most tokens of a row; the model's limit by default.", DATA, None, commands=EVERY, least=3
    )
    overflow: str = option("Longer rows: {choices}.", DATA, "truncate", commands=EVERY, choices=OVERFLOWS)
    device: str = option(
        "auto (a GPU where there is one), cpu, cuda or cuda:1.", MODEL, AUTO, commands=EVERY, free=True
    )
    dtype: str = option("{choices}.", MODEL, AUTO, commands=EVERY, choices=DTYPE_CHOICES)
    head: str = option("{choices}.", MODEL, "auto", commands=EVERY, choices=HEADS)
    trust_remote_code: bool = option(
        "Run Python code that comes with the model.", MODEL, False, commands=EVERY, free=True
    )
    trainable: str | None = option("Train only parameters with such names: *norm*,lm_head*.", METHOD, None)
    quantize: str | None = option(
        "Hold the frozen linear layers under --peft or --trainable in few bits: {choices}.",
        METHOD,
        None,
        choices=QUANTIZED,
    )
    peft: str | None = option(
        "Train an adapter, not the weights: lora:r=8,alpha=16,targets=q_proj+v_proj, or dora:...", METHOD, None
    )
    objective: str = option("What is made better: {choices}.", METHOD, "loss", commands=(FINETUNE,), choices=OBJECTIVES)
    reward: str | None = option(
        "Own objective of written answers: FILE.py:FUNCTION (its code runs).", METHOD, None, commands=(FINETUNE,)
    )
    method: str = option("{choices}.", METHOD, "spzo", choices=METHODS, page="One of [methods](methods.md), or auto.")
    blocks: int | None = option("Cut the layers into so many equal blocks.", METHOD, None, least=1, most=MOST_BLOCKS)
    split: str | None = option(
        "Where blocks begin: layers (12,24), fractions (0.5), head.",
        METHOD,
        None,
        stands_for=("boundary", "boundaries"),
    )
    outer: int = option("spzo: directions of the first block.", METHOD, 1, least=1)
    inner: int = option("spzo: directions of the second block for each.", METHOD, 4, least=1)
    variant: str = option("spzo: {choices}.", METHOD, "coupled", choices=VARIANTS)
    one_sided: bool = option(
        f"{_takers('one_sided')}: sign + only, against one unmoved loss.",
        METHOD,
        False,
        page="Sign + only, against one unmoved loss, of methods that have both signs.",
    )
    directions: int | None = option(
        f"{_takers('directions')}: directions a step.",
        METHOD,
        None,
        least=1,
        page="Directions a step, of methods that move the whole model along each.",
    )
    levels: str | None = option("tree: directions of every block: 1,2,4.", METHOD, None)
    per_example: bool = option("Every example along directions of its own.", METHOD, False)
    lr: str | None = option(
        "Learning rate, or one a block: 1e-6,1e-4. Where left out: measured (in rounds 1e-6); auto: a factor (1).",
        METHOD,
        None,
    )
    schedule: str = option("{choices}.", METHOD, "constant", choices=SCHEDULES)
    warmup: int = option("Steps over which the rate rises.", METHOD, 0, least=0)
    eps: str = option("Size of the perturbation, or one a block.", METHOD, "1e-3")
    distribution: str = option("{choices}.", METHOD, "rademacher", choices=DISTRIBUTIONS)
    rank: int | None = option("Of the noise of matrices; full noise by default.", METHOD, None, least=1, most=MAX_RANK)
    weight_decay: float = option("Decoupled, times the rate.", METHOD, 0.0)
    stochastic_rounding: bool = option("For 16-bit weights.", METHOD, False)
    moved: str = option(
        "Moved 16-bit weights in products: {choices}.",
        METHOD,
        "auto",
        choices=MOVED,
        page="How [moved 16-bit weights](perturbed.md#rounding-of-moved-weights) are multiplied: one of auto, float32, rounded.",
    )
    in_place: bool = option(
        "Write and restore weights to evaluate: not exact, no bitwise replay.", METHOD, False, commands=(FINETUNE,)
    )
    batch: int = option("Rows a step.", RUN, 16, commands=EVERY, short="-b", least=1)
    steps: int = option("Steps.", RUN, 100, short="-n", least=1, free=True)
    eval_every: int | None = option(
        "Steps between evaluations; a tenth of the run by default.", RUN, None, least=1, free=True
    )
    eval_rows: int | None = option("Held-out rows of these evaluations.", RUN, 256, least=1, free=True)
    pool: int = option("Batches sorted by length together; 1 for plain random batches.", RUN, 16, least=1)
    seed: int = option("Of noise, batches and chosen rows.", RUN, 0, commands=EVERY)
    threads: int | None = option("CPU threads.", RUN, None, commands=EVERY, least=1, most=1 << 12, free=True)

    def __post_init__(self) -> None:
        check(self)
        if self.lr is None and self.method == "auto":
            object.__setattr__(self, "lr", "1")
        if not DEVICE.fullmatch(self.device):
            raise UserError(f"--device is {self.device!r}; expected auto, cpu, cuda, or a numbered GPU such as cuda:1")
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed is {self.seed}; expected an integer in [0, 2**64)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"--weight-decay is {self.weight_decay}; expected a finite number that is not negative")
        if self.quantize is not None and self.peft is None and self.trainable is None:
            raise UserError(
                f"--quantize {self.quantize} is for frozen layers; say what is trained beside them: --peft lora, or --trainable "
                "'*norm*'"
            )
        if self.peft is not None:
            if parse_adapter(self.peft).kind == "dora" and self.quantize is not None:
                raise UserError("--peft dora reads the lengths of the base's rows; with --quantize take --peft lora")
            if self.head == "mean":
                raise UserError(
                    "--peft goes with language-model heads; leave --head mean out, or train the head with --trainable"
                )
        if self.reward is not None and self.objective != "loss":
            raise UserError(f"--reward and --objective {self.objective} both say what is made better; give one of them")
        if self.shots is not None and self.train_rows is not None:
            raise UserError("--shots and --train-rows both choose training rows; give one of them")
        if self.blocks is not None and self.split is not None:
            raise UserError("--blocks and --split both cut the model; give one of them")
        if any(e <= 0 or float32(e) == 0 for e in numbers("--eps", self.eps)):
            raise UserError(f"--eps is {self.eps}; expected positive numbers that float32 can hold")
        if self.lr is not None and any(rate < 0 for rate in numbers("--lr", self.lr)):
            raise UserError(f"--lr is {self.lr}; expected numbers that are not negative")
        if self.levels is not None:
            self._levels()
        cuts = self.boundaries()
        # how many blocks a planner has, where it cuts by itself, the model alone says
        count = 1 if cuts == "fine" else 2 if cuts == "auto" else len(cuts) + 1
        if count > MOST_BLOCKS:
            raise UserError(f"--blocks, --split or --levels make {count} blocks; expected {MOST_BLOCKS} or fewer")
        for name in ("eps",) if self.lr is None else ("lr", "eps"):
            found = len(numbers(f"--{name}", getattr(self, name)))
            if found not in (1, count):
                raise UserError(f"--{name} has {found} numbers for {count} blocks; expected one, or one a block")
        if self.per_example and self.in_place:
            raise UserError("--per-example does not go with --in-place; leave one of them out")
        if self.moved == "float32" and self.in_place:
            raise UserError("--moved float32 does not go with --in-place, where weights are written in their dtype")
        if self.method == "auto" and self.in_place:
            raise UserError("--method auto evaluates perturbed forwards; leave --in-place out")
        losses = self._losses()
        if losses > MOST_LOSSES:
            raise UserError(
                f"--method {self.method} would evaluate {losses:.3g} losses a step; expected {MOST_LOSSES} or fewer: lower "
                "--directions, --outer, --inner or --levels"
            )
        try:
            estimator = self.estimator()
            if self.method != "auto":
                estimator.tree(count)  # type: ignore[union-attr]
        except ValueError as error:
            raise UserError(f"{error}. Look at --method, --variant, --blocks, --split and --levels") from None

    @property
    def interval(self) -> int:
        """Steps between evaluations: as told, or a tenth of the run."""
        return self.eval_every or max(1, self.steps // 10)

    def boundaries(self) -> str | list[int | float | str]:
        """What `Blocks` is told: layer numbers or fractions at which blocks begin; "fine" for `planner.fine_blocks`."""
        if self.split is not None:
            if self.split == "auto":
                return "auto"
            return places("--split", self.split)
        count = self.blocks
        if count is None and self.method == "auto":
            return "fine"
        if count is None:
            found = self.estimator()
            count = 1 if isinstance(found, Auto) else found.default_blocks()
        return [i / count for i in range(1, count)]

    def estimator(self) -> Method | Auto:
        takes = () if self.method == "auto" else by_option()[self.method].options
        for name, given in (("directions", self.directions is not None), ("one_sided", self.one_sided)):
            if given and name not in takes:
                options = ", ".join(f"--{taken.replace('_', '-')}" for taken in takes)
                others = ", ".join(kind for kind, cls in sorted(by_option().items()) if name in cls.options)
                raise UserError(
                    f"--{name.replace('_', '-')} does not go with --method {self.method}, which takes "
                    f"{options or 'no options'}; it is for {others}"
                )
        if self.method == "auto":
            return Auto()
        values = {name: self._levels() if name == "levels" else getattr(self, name) for name in takes}
        try:
            return by_option()[self.method](**{name: value for name, value in values.items() if value is not None})
        except ValueError as error:
            options = "".join(f", --{name.replace('_', '-')}" for name in takes)
            raise UserError(f"{error}. Look at --method{options}") from None

    def _losses(self) -> float:
        """About how many losses a step has, without its tree, which would be as large."""
        estimator = self.estimator()
        return 0.0 if isinstance(estimator, Auto) else estimator.evaluations(1)

    def _levels(self) -> list[int]:
        if self.levels is None:
            if self.method == "tree":
                raise UserError(
                    "--method tree needs --levels, the directions of every block, for example --levels 1,2,4"
                )
            return []
        return counts("--levels", self.levels)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The settings in a journal's header.

        Raises:
            UserError: they lack the model, or hold something this version does not know.
        """
        try:
            return build(cls, values, "settings")
        except UserError:
            raise
        except Refusal as error:
            raise UserError(
                f"the journal's settings do not fit this version of blockzo ({error}); use the version that wrote it"
            ) from None
