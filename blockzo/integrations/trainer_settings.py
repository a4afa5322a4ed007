"""What a Trainer is told beside its own arguments: method, blocks, rates, journal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn
from transformers import TrainingArguments

from blockzo.contract import check_moved
from blockzo.methods import Method, named
from blockzo.methods.auto import Auto
from blockzo.perturb.blocks import Blocks

OF_METHOD = ("directions", "outer", "inner", "variant", "one_sided")
"""Settings that go to the method where they are given."""
LACKS = {
    "fp16": "evaluations run in the model's own dtype, and nothing is scaled: load the model with dtype=torch.float16",
    "fp8": "evaluations run in the model's own dtype: leave it out",
    "bf16": "evaluations run in the model's own dtype: load the model with dtype=torch.bfloat16",
    "fsdp": "each process holds the whole model; sharded models step with blockzo.DistributedZO (docs/distributed.md)",
    "deepspeed": "there is no optimizer state to spread: leave it out",
    "fp16_full_eval": "evaluate() would leave the weights in float16: load the model with dtype=torch.float16",
    "bf16_full_eval": "evaluate() would leave the weights in bfloat16: load the model with dtype=torch.bfloat16",
    "neftune_noise_alpha": "evaluations of one step must differ by their weights alone: leave it out",
}
"""Arguments of the Trainer that do not go with evaluations alone, and what to do."""
IGNORED = (
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("torch_compile", "activation_checkpointing", "gradient_checkpointing"),
)
"""Arguments that do nothing here."""
OF_DATA = ("data_seed", "dataloader_drop_last", "train_sampling_strategy", "label_smoothing_factor")
"""Arguments of the Trainer that steps depend on, beside those that a journal's header has."""


@dataclass
class ZOSettings:
    """Arguments of a zeroth-order Trainer. `learning_rate` is 1e-6 where it is not given; with `method="auto"` a factor, 1.

    Ignored, as nothing is differentiated: `optim`, `max_grad_norm`, `gradient_checkpointing`.
    """

    plain: ClassVar[type[TrainingArguments]]

    learning_rate: float | None = field(default=None, metadata={"help": "Of all blocks; 1e-6, or 1 with method auto."})
    bf16: bool | None = field(
        default=False, metadata={"help": "Not with evaluations alone: load the model in bfloat16."}
    )
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "Of no use without gradients."})
    method: str = field(
        default="mezo", metadata={"help": "Name of a method: mezo, spsa, one-sided, fzoo, spzo, ..., auto."}
    )
    directions: int | None = field(default=None, metadata={"help": "Of a step: spsa, one-sided, fzoo, es, rank-es."})
    outer: int | None = field(default=None, metadata={"help": "Directions of the first block: spzo."})
    inner: int | None = field(default=None, metadata={"help": "Directions of the second block under each: spzo."})
    variant: str | None = field(default=None, metadata={"help": "coupled, crossed or decoupled: spzo."})
    one_sided: bool | None = field(default=None, metadata={"help": "Against the unmoved loss: spzo."})
    blocks: str | None = field(
        default=None,
        metadata={"help": "Where blocks begin: layers or fractions (2,0.5), head, auto; none for one block."},
    )
    block_rates: list[float] | None = field(default=None, metadata={"help": "Learning rate of each block."})
    eps: float = field(default=1e-3, metadata={"help": "Size of a perturbation."})
    distribution: str = field(default="rademacher", metadata={"help": "rademacher or gaussian."})
    rank: int | None = field(default=None, metadata={"help": "Of the noise of matrices, 1 to 64; full where none."})
    per_example: bool = field(default=False, metadata={"help": "Every example along directions of its own."})
    evaluate: str = field(default="perturbed", metadata={"help": "perturbed, or in_place (not exact)."})
    moved: str = field(default="auto", metadata={"help": "Moved 16-bit weights in products: auto, float32 or rounded."})
    stochastic_rounding: bool = field(default=False, metadata={"help": "For 16-bit weights."})
    journal: str | None = field(
        default="journal.bz", metadata={"help": "File of the records, in output_dir unless absolute; none: no journal."}
    )

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            self.learning_rate = 1.0 if self.method == "auto" else 1e-6
        if self.bf16 is None:
            self.bf16 = False
        refuse(vars(self))
        self.estimator()
        check_moved(self.moved)
        super().__post_init__()  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # classes that `with_settings` makes have no name to be found by
        whole: Any = super().__reduce_ex__(2)
        return (_empty, (self.plain,), *whole[2:])

    def estimator(self) -> Method | Auto:
        """The method.

        Raises:
            ValueError: none of that name, or settings that it does not take.
        """
        given = {name: value for name in OF_METHOD if (value := getattr(self, name)) is not None}
        if self.method == "auto":
            if given:
                raise ValueError(f'method "auto" chooses by itself; expected no {", ".join(given)}')
            return Auto()
        return named(self.method, **given)

    def cut(self, model: nn.Module) -> Blocks | None:
        """The model in blocks; None where nothing is said."""
        if self.blocks is None:
            return None
        parts = [part.strip() for part in str(self.blocks).split(",") if part.strip()]
        if parts in (["none"], ["auto"]):
            return Blocks(model, [] if parts == ["none"] else "auto")
        return Blocks(model, [_boundary(part) for part in parts])

    def described(self) -> dict[str, Any]:
        """As a journal's header holds it."""
        return {
            "method": self.estimator().describe(),
            **{
                name: getattr(self, name)
                for name in ("blocks", "block_rates", "eps", "distribution", "rank", "per_example", "moved")
            },
            **{name: getattr(self, name) for name in ("learning_rate", "weight_decay", "seed", "max_steps")},
            "schedule": str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)),  # type: ignore[attr-defined]
            "rows": self.per_device_train_batch_size,  # type: ignore[attr-defined]
            "accumulated": self.gradient_accumulation_steps,  # type: ignore[attr-defined]
        }

    def deciding(self) -> dict[str, Any]:
        """What the bits of a step depend on beside weights, data and the number of steps: more than a header has."""
        found = self.described()
        del found["max_steps"]
        own = ("stochastic_rounding", "evaluate", "warmup_steps", "lr_scheduler_kwargs", *OF_DATA)
        found |= {name: getattr(self, name) for name in own if hasattr(self, name)}
        # as it is after it was written
        return dict(json.loads(json.dumps(found, default=str)))

    def ignored(self) -> dict[str, Any]:
        """Arguments that were given and do nothing here."""
        defaults = {name: field.default for name, field in self.plain.__dataclass_fields__.items()}
        given = {name: getattr(self, name) for name in IGNORED if name in defaults}
        return {
            name: value
            for name, value in given.items()
            if value not in (None, False) and str(getattr(value, "value", value)) != str(defaults[name])
        }

    def without_recomputing(self) -> None:
        """Without checkpointed activations, whose hooks keep evaluations from running as a batch."""
        for name in ("activation_checkpointing", "gradient_checkpointing"):
            if hasattr(self, name):
                setattr(self, name, None)


@dataclass
class ZOConfig(ZOSettings, TrainingArguments):
    """`TrainingArguments` with `ZOSettings`: method, blocks, rates a block, journal."""

    plain = TrainingArguments


def _boundary(text: str) -> Any:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def refuse(given: Mapping[str, Any]) -> None:
    """Raises ValueError where an argument does not go with evaluations alone."""
    for name, reason in LACKS.items():
        if value := given.get(name):
            raise ValueError(f"{name}={value!r} does not go with a zeroth-order Trainer: {reason}")


_made: dict[type, Any] = {}


def with_settings(plain: type[TrainingArguments]) -> Any:
    """A subclass of a class of training arguments that has the settings too; one for each class."""
    if issubclass(plain, ZOSettings):
        return plain
    if plain is TrainingArguments:
        return ZOConfig
    if plain not in _made:
        names = {"plain": plain, "__module__": __name__, "__doc__": f"`{plain.__name__}` with `ZOSettings`."}
        _made[plain] = dataclass(type(f"ZO{plain.__name__}", (ZOSettings, plain), names))
    return _made[plain]


def _empty(plain: type[TrainingArguments]) -> Any:
    return object.__new__(with_settings(plain))


def converted(args: TrainingArguments | None, wanted: type[TrainingArguments]) -> Any:
    """Arguments of the class that a Trainer wants, with settings; those given stay, as TRL too does it.

    Mixed precision and checkpointed gradients, which TRL asks for by default, are left out of arguments without settings.

    Raises:
        ValueError: an argument does not go with evaluations alone.
    """
    if args is None:
        return with_settings(wanted)()
    kind = type(args) if isinstance(args, wanted) else wanted
    if isinstance(args, ZOSettings) and isinstance(args, kind):
        return args
    target: Any = with_settings(kind)
    known = {name for name, held in target.__dataclass_fields__.items() if held.init}
    values = {name: value for name, value in args.to_dict().items() if name in known}
    if not isinstance(args, ZOSettings):
        if args.bf16 and type(args).__dataclass_fields__["bf16"].default is False:
            refuse({"bf16": True})
        values |= {"bf16": False, "gradient_checkpointing": None}
    # those are not written out
    tokens = {name: getattr(args, name) for name in values if name.endswith("_token")}
    return target(**{**values, **tokens})
