"""Everything that a run is told, checked before anything is loaded; the journal's header holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from blockzo.contract import DISTRIBUTIONS
from blockzo.finetune.errors import UserError
from blockzo.journal.outside import MOST_BLOCKS, Refusal, build, shown
from blockzo.journal.record import float32
from blockzo.methods import estimators
from blockzo.methods.planner import Auto
from blockzo.optim.schedules import SCHEDULES

METHODS = ("mezo", "spsa", "spzo", "one-sided", "fzoo", "tree", "auto")
MOST_LOSSES = 100_000
"""Of one step; far more than any run has use for."""
VARIANTS = ("coupled", "crossed", "decoupled")


@dataclass(frozen=True)
class Settings:
    """One run. Lists (`lr`, `eps`, `split`, `levels`) are text with commas, as on the command line; `None` means the default."""

    model: str
    task: str = "sst2"
    train: str | None = None
    validation: str | None = None
    data_dir: str | None = None
    template: str | None = None
    labels: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    control_tokens: bool = False
    train_where: str | None = None
    train_rows: int | None = None
    shots: int | None = None
    holdout: int | None = None
    method: str = "spzo"
    blocks: int | None = None
    split: str | None = None
    outer: int = 1
    inner: int = 4
    variant: str = "coupled"
    one_sided: bool = False
    directions: int | None = None
    levels: str | None = None
    lr: str | None = None
    schedule: str = "constant"
    warmup: int = 0
    eps: str = "1e-3"
    distribution: str = "rademacher"
    dtype: str = "float32"
    stochastic_rounding: bool = False
    weight_decay: float = 0.0
    batch: int = 16
    steps: int = 100
    eval_every: int | None = None
    eval_rows: int | None = 256
    final_rows: int | None = None
    max_length: int | None = None
    overflow: str = "truncate"
    pool: int = 16
    seed: int = 0
    head: str = "auto"
    trust_remote_code: bool = False
    trainable: str | None = None
    in_place: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        _one_of("--method", self.method, METHODS)
        if self.lr is None:
            object.__setattr__(self, "lr", "1" if self.method == "auto" else "1e-6")
        _one_of("--variant", self.variant, VARIANTS)
        _one_of("--schedule", self.schedule, SCHEDULES)
        _one_of("--distribution", self.distribution, DISTRIBUTIONS)
        _one_of("--dtype", self.dtype, ("float32", "bfloat16", "float16"))
        _one_of("--overflow", self.overflow, ("truncate", "error"))
        _one_of("--head", self.head, ("auto", "words", "mean"))
        for name in ("outer", "inner", "batch", "steps", "pool"):
            _at_least(name, getattr(self, name), 1)
        for name in ("blocks", "directions", "eval_every", "eval_rows", "final_rows", "train_rows", "shots", "threads"):
            _at_least(name, getattr(self, name), 1)
        for name, most in (("blocks", MOST_BLOCKS), ("threads", 1 << 12)):
            if (getattr(self, name) or 0) > most:
                raise UserError(f"--{name} is {shown(getattr(self, name))}; expected {most} at most")
        _at_least("holdout", self.holdout, 1)
        _at_least("max_length", self.max_length, 3)
        _at_least("warmup", self.warmup, 0)
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed is {self.seed}; expected an integer in [0, 2**64)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"--weight-decay is {self.weight_decay}; expected a finite number that is not negative")
        if self.shots is not None and self.train_rows is not None:
            raise UserError("--shots and --train-rows both choose training rows; give one of them")
        if self.blocks is not None and self.split is not None:
            raise UserError("--blocks and --split both cut the model; give one of them")
        if any(e <= 0 or float32(e) == 0 for e in numbers("--eps", self.eps)):
            raise UserError(f"--eps is {self.eps}; expected positive numbers that float32 can hold")
        if any(rate < 0 for rate in numbers("--lr", self.lr or "")):
            raise UserError(f"--lr is {self.lr}; expected numbers that are not negative")
        cuts = self.boundaries()
        # how many blocks a planner has, where it cuts by itself, the model alone says
        count = 1 if cuts == "fine" else 2 if cuts == "auto" else len(cuts) + 1
        if count > MOST_BLOCKS:
            raise UserError(f"--blocks, --split or --levels make {count} blocks; expected {MOST_BLOCKS} or fewer")
        for name in ("lr", "eps"):
            found = len(numbers(f"--{name}", getattr(self, name)))
            if found not in (1, count):
                raise UserError(f"--{name} has {found} numbers for {count} blocks; expected one, or one a block")
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
            if not isinstance(estimator, Auto):
                estimator.tree(count)
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
            return [_boundary(entry.strip()) for entry in _entries("--split", self.split)]
        count = self.blocks
        if count is None and self.method == "auto":
            return "fine"
        if count is None:
            count = {"spzo": 2, "tree": len(self._levels())}.get(self.method, 1)
        return [i / count for i in range(1, count)]

    def estimator(self) -> estimators.Method | Auto:
        directions = self.directions
        if self.method in ("mezo", "spzo", "tree", "auto") and directions is not None:
            instead = {"mezo": "use --method spsa", "spzo": "use --outer and --inner", "tree": "use --levels"}
            raise UserError(
                f"--directions does not go with --method {self.method}; {instead.get(self.method, 'the planner chooses them')}"
            )
        if self.one_sided and self.method not in ("spzo", "tree"):
            raise UserError(
                f"--one-sided does not go with --method {self.method}; it is for spzo and tree (or use --method one-sided)"
            )
        if self.method == "auto":
            return Auto()
        if self.method == "mezo":
            return estimators.MeZO()
        if self.method == "spsa":
            return estimators.SPSA(directions or 1)
        if self.method == "one-sided":
            return estimators.OneSided(directions or 1)
        if self.method == "fzoo":
            return estimators.FZOO(directions or 8)
        if self.method == "tree":
            return estimators.Tree(tuple(self._levels()), self.one_sided)
        return estimators.SPZO(self.outer, self.inner, self.variant, self.one_sided)

    def _losses(self) -> float:
        """About how many losses a step has, without its tree, which would be as large."""
        if self.method == "tree":
            return 2.0 * math.prod(float(max(1, level)) for level in self._levels())
        if self.method == "spzo":
            return 4.0 * self.outer * (self.inner + 1)
        return 2.0 * (self.directions or 1)

    def _levels(self) -> list[int]:
        if self.levels is None:
            if self.method == "tree":
                raise UserError(
                    "--method tree needs --levels, the directions of every block, for example --levels 1,2,4"
                )
            return []
        levels = numbers("--levels", self.levels)
        if any(level != int(level) or level < 0 for level in levels):
            raise UserError(f"--levels is {self.levels}; expected whole numbers with commas, one a block")
        return [int(level) for level in levels]

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


FREE_ON_RESUME = frozenset(
    "model train validation data_dir eval_every eval_rows final_rows threads steps trust_remote_code".split()
)
"""Settings that may differ when a run continues: model and data are compared by digest, the others do not change a step."""


def resumed(old: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings of a run that continues: the journal's, with what the user gave again where that may differ.

    Raises:
        UserError: names every setting that was given and differs.
    """
    before = old.as_dict()
    wrong = differences(before, given, FREE_ON_RESUME)
    steps = given.get("steps", old.steps)
    if steps != old.steps and old.schedule != "constant":
        wrong.append(f"--steps was {old.steps}, now {steps}, which would change the {old.schedule} schedule")
    refuse(wrong)
    # that code was trusted once says nothing of the code that is there now
    before["trust_remote_code"] = False
    return Settings(**{**before, **{k: v for k, v in given.items() if k in FREE_ON_RESUME}})


def differences(before: Mapping[str, Any], given: Mapping[str, Any], free: frozenset[str]) -> list[str]:
    """Of settings that were given again: those that are not `free` to differ from what they were, each as a phrase."""
    return [
        f"--{name.replace('_', '-')} was {before[name]}, now {value}"
        for name, value in given.items()
        if name in before and name not in free and not _same(name, value, before[name])
    ]


def refuse(wrong: list[str]) -> None:
    """Raises UserError where a run that continues would have other settings."""
    if wrong:
        raise UserError(
            f"the run cannot continue with other settings: {'; '.join(wrong)}. Leave these options out, or start another run "
            "in another --output"
        )


def _same(name: str, one: Any, other: Any) -> bool:
    if name in ("lr", "eps") and one is not None:
        return numbers(f"--{name}", one) == numbers(f"--{name}", other)
    return bool(one == other)


def numbers(option: str, text: str) -> list[float]:
    """Comma-separated finite numbers."""
    result = []
    for entry in _entries(option, str(text)):
        try:
            value = float(entry)
        except ValueError:
            raise UserError(
                f"{option} is {shown(text)}; expected a number, or numbers with commas (one a block)"
            ) from None
        if not math.isfinite(float32(value)):
            raise UserError(f"{option} is {shown(text)}; expected numbers that are finite in float32: give lower ones")
        result.append(value)
    return result


def _entries(option: str, text: str) -> list[str]:
    if text.count(",") >= MOST_BLOCKS or len(text) > 64 * MOST_BLOCKS:
        raise UserError(f"{option} is {shown(text)}; expected {MOST_BLOCKS} numbers at most")
    return text.split(",")


def _boundary(text: str) -> int | float | str:
    if text == "head":
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError
        return value
    except ValueError:
        raise UserError(f"--split has {shown(text)}; expected layer numbers (12,24), fractions (0.5) or head") from None


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{option} is {value!r}; expected one of {', '.join(allowed)}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"--{name.replace('_', '-')} is {value}; expected {least} or more")
