"""Errors speak of options as they are typed: `--max-length`, not `max_length`; in one place, for every command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

ALSO = {
    "boundary": "--split",
    "boundaries": "--split",
    "privacy mode": "--privacy",
    "privacy delta": "--delta",
    "privacy clip": "--clip",
    "privacy noise_multiplier": "--noise-multiplier",
}
"""Arguments of the library that stand for an option of another name."""

OF_COMMAND: dict[str, dict[str, str]] = {
    # rounds are the steps of a simulation, and --pool is of batches
    "simulate": {"--steps": "--rounds", "steps": "--rounds", "pool": "--seed-pool"},
    "evaluate": {"--model": "MODEL"},
    "replay": {"--model": "BASE", "--output": "OUT"},
}


def as_typed(text: str, names: Mapping[str, str]) -> str:
    """`text` with the names of arguments as options: where one begins a sentence or an entry (`clip is 0`), is given a value
    (`clip="1"`), or has an underscore; elsewhere `clip` may be a word of the sentence.

    Args:
        names: argument, or option of another command -> option of this one.
    """
    for name, option in names.items():
        word = rf"(?<![\w./'\"-]){re.escape(name)}"
        if name.startswith("--"):
            text = re.sub(rf"{word}(?![\w-])", option, text)
            continue
        text = re.sub(rf"{word}=[\"']?([\w.-]+)[\"']?", rf"{option} \1", text)
        begins = rf"(^|[:;,] |\()(?:the )?{re.escape(name)}(?= (?:is|has|was|cut|-?[\d.]|nan|inf|['\"\[]))"
        text = re.sub(begins, rf"\1{option}", text)
        if "_" in name:
            text = re.sub(rf"{word}(?![\w./'\"-])", option, text)
    return text


def typed(context: Any) -> dict[str, Any]:
    """Parameters that stood on the command line, with their values."""

    def told(name: str) -> bool:
        # by name, since newer typers bring their own copy of click's enumeration
        return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"

    return {name: value for name, value in context.params.items() if told(name)}


class Command(TyperCommand):
    """A command whose errors name its options."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if error.args == (str(error),):
                error.args = (as_typed(str(error), self.names()),)
            raise

    def names(self) -> dict[str, str]:
        own = {
            str(parameter.name): max(parameter.opts, key=len)
            for parameter in self.params
            if parameter.param_type_name == "option"
        }
        return {**ALSO, **own, **OF_COMMAND.get(str(self.name), {})}
