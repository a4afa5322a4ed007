"""An option is written once: as a field of `Settings` (or of a simulation's `Federation`), made by `option`.

The command line, its help and completion, the names in errors, the keys of a `--config` file, the checks of single values, what
may differ when a run continues, and the tables in docs/ follow from the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.journal.outside import shown

DATA, MODEL, METHOD, RUN = "Task and data", "Model", "Method", "Run"
FINETUNE, SIMULATE, EVALUATE = "finetune", "simulate", "evaluate"
TRAINING = (FINETUNE, SIMULATE)
EVERY = (FINETUNE, SIMULATE, EVALUATE)


@dataclass(frozen=True)
class Option:
    """What a field says of itself beside its name, type and default."""

    meaning: str
    """`{choices}` in it stands for the choices."""
    group: str
    """The heading that it stands under in help and docs."""
    commands: tuple[str, ...]
    short: str | None = None
    choices: Mapping[str, str] | None = None
    """Its only values, each with a note or an empty text."""
    least: int | None = None
    most: int | None = None
    free: bool = False
    """May differ when a run continues."""
    stands_for: tuple[str, ...] = ()
    """Arguments of the library, of other names, that errors may speak of where this option was meant."""
    page: str | None = None
    """What the docs say instead of the help, where that lists what a registry holds."""
    suggested: Any = None
    """The command line's default of a field that has none."""

    @property
    def help(self) -> str:
        return self.meaning.replace("{choices}", listed(self.choices or {}))

    def check(self, name: str, value: Any) -> None:
        """Raises UserError where the option cannot have this value."""
        told = named(name)
        if value is None:
            return
        if self.choices is not None and value not in self.choices:
            raise UserError(f"{told} is {value!r}; expected one of {', '.join(self.choices)}")
        if self.least is not None and value < self.least:
            raise UserError(f"{told} is {value}; expected {self.least} or more")
        if self.most is not None and value > self.most:
            raise UserError(f"{told} is {shown(value)}; expected {self.most} at most")


def option(
    meaning: str,
    group: str,
    default: Any = MISSING,
    *,
    commands: tuple[str, ...] = TRAINING,
    choices: Mapping[str, str] | tuple[str, ...] | None = None,
    **more: Any,
) -> Any:
    """A dataclass field that is an option; `more` are fields of `Option`."""
    found = dict.fromkeys(choices, "") if isinstance(choices, tuple) else choices
    return dataclasses.field(
        default=default, metadata={"option": Option(meaning, group, commands, choices=found, **more)}
    )


def options_of(form: Any) -> dict[str, Option]:
    """The options of a dataclass (or of an instance) by the names of its fields."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(form) if "option" in field.metadata}


def check(form: Any) -> None:
    """Raises UserError where a value of `form` is none that its option can have."""
    for name, found in options_of(form).items():
        found.check(name, getattr(form, name))


def free_on_resume(form: Any) -> frozenset[str]:
    return frozenset(name for name, found in options_of(form).items() if found.free)


def named(name: str) -> str:
    """A field as it is typed."""
    return f"--{name.replace('_', '-')}"


def listed(choices: Mapping[str, str]) -> str:
    """`a, b (its note) or c`."""
    told = [name + (f" ({note})" if note else "") for name, note in choices.items()]
    return " or ".join(part for part in (", ".join(told[:-1]), told[-1] if told else "") if part)
