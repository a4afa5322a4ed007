"""A command whose options are fields of dataclasses (`blockzo.finetune.option`).

jsonargparse and tyro were tried for this. Neither says which options were typed, which `--resume` has to know, nor the line of
a file. jsonargparse has `--max_length` for `--max-length`, and reads `lr: 1e-6` as a number where a text is wanted; tyro reads
no file, and tells errors in boxes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from blockzo.cli.config_file import LINES
from blockzo.cli.option_names import as_typed
from blockzo.finetune.option import Option, named, options_of


def options_from(*forms: type[Any], command: str, changed: Mapping[str, Change] | None = None) -> Callable[[Any], Any]:
    """Decorates a function `(..., **chosen)` so that typer sees the options of `forms` in the place of `chosen`.

    What the function names itself stands for a field of that name.

    Args:
        command: those are taken that say they belong to this one.
        changed: what is other here, by the name of the field.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        taken = {parameter.name for parameter in own}
        made = [
            _parameter(name, option, hint, default, (changed or {}).get(name, Change()))
            for name, option, hint, default in _chosen(forms, command)
            if name not in taken
        ]
        # help shows them in this order, arguments first
        every = sorted((*own, *made), key=lambda one: (one.default is not one.empty, one.name in taken))
        function.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        function.aliases = {  # type: ignore[attr-defined]
            alias: name for name, option, *_ in _chosen(forms, command) for alias in option.stands_for
        }
        return function

    return decorate


@dataclass(frozen=True)
class Change:
    """What a command has other than the field says: the option's name, its default, its help."""

    name: str | None = None
    default: Any = ...
    """`...`: as the field has it."""
    help: str | None = None


def _chosen(forms: tuple[type[Any], ...], command: str) -> Iterator[tuple[str, Option, Any, Any]]:
    """Name, option, type and default of the fields that a command has."""
    for form in forms:
        hints, options = get_type_hints(form), options_of(form)
        for field in fields(form):
            option = options.get(field.name)
            if option is not None and command in option.commands:
                default = option.suggested if field.default is MISSING else field.default
                yield field.name, option, hints[field.name], default


def _parameter(name: str, option: Option, hint: Any, default: Any, change: Change) -> inspect.Parameter:
    typed = f"--{change.name}" if change.name else named(name)
    switch = f"{typed}/--no-{typed[2:]}" if hint is bool else typed
    choices = list(option.choices or ())
    declared = typer.Option(
        *(switch, *([option.short] if option.short else [])),
        help=change.help or option.help,
        rich_help_panel=option.group,
        show_default=hint is not bool,
        autocompletion=(lambda: choices) if choices else None,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default if change.default is ... else change.default,
        annotation=Annotated[hint, declared],
    )


def typed(context: Any) -> dict[str, Any]:
    """Parameters that stood on the command line or in its --config file, with their values."""

    def told(name: str) -> bool:
        # by name, since newer typers bring their own copy of click's enumeration
        return getattr(context.get_parameter_source(name), "name", "") in ("COMMANDLINE", "DEFAULT_MAP")

    return {name: value for name, value in context.params.items() if told(name)}


def those_of(form: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was given, the fields of `form`."""
    return {name: value for name, value in given.items() if name in options_of(form)}


class Command(TyperCommand):
    """A command whose errors name its options, with the line of the file that gave them."""

    others: Mapping[str, str] = {}
    """Options of other commands that messages may speak of -> what stands for them here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if error.args == (str(error),):
                error.args = (_with_place(as_typed(str(error), self.names()), ctx),)
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer's, without a column for the `--no-` form that every switch of a run has."""
        forms = {id(parameter): parameter.secondary_opts for parameter in self.params}
        try:
            for parameter in self.params:
                parameter.secondary_opts = []
            super().format_help(ctx, formatter)
        finally:
            for parameter in self.params:
                parameter.secondary_opts = forms[id(parameter)]

    def names(self) -> dict[str, str]:
        """Arguments of the library, and options of other commands -> what is typed here."""
        found: dict[str, str] = {}
        for parameter in self.params:
            name = str(parameter.name)
            if parameter.param_type_name == "option":
                found[name] = max(parameter.opts, key=len)
                if found[name] != named(name):
                    found[named(name)] = found[name]
            else:
                found[named(name)] = parameter.metavar or name.upper()
        aliases = getattr(inspect.unwrap(self.callback), "aliases", {}) if self.callback is not None else {}
        told = {alias: found[name] for alias, name in aliases.items()}
        # an alias may hold a name (`privacy noise_multiplier`), and comes before it
        return {**told, **{name: option for name, option in found.items() if name not in told}, **self.others}


def _with_place(text: str, context: Any) -> str:
    """`text` with file and line before it, where it first speaks of an option that stood in a --config file."""
    first = re.search(r"--[a-z][a-z-]*", text)
    lines = context.meta.get(LINES, {})
    if first is None or first[0] not in lines or text.startswith(lines[first[0]]):
        return text
    parameter = next((p for p in context.command.params if first[0] in p.opts), None)
    source = getattr(context.get_parameter_source(parameter.name), "name", "") if parameter is not None else ""
    return f"{lines[first[0]]}: {text}" if source == "DEFAULT_MAP" else text
