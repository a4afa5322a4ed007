"""`--config run.yaml`: options by name from a file. What is typed on the command line wins.

Values are read as they are written (`lr: 1e-6` is that text), since each option says itself what it takes; a list stands for
values with commas.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError

LINES = "blockzo.config"
"""Where a command's context keeps the places of what its file said."""
PASSED_OVER = "passed_over"
"""Attribute of a command's function: options of other commands that its file may hold, so that one file serves several."""
LARGEST = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One line `name: value`; `value` is None where nothing stands there (or `null`), which means the default."""

    name: str
    value: str | None
    place: str


def read_config(context: Any, value: str | None) -> str | None:
    """The callback of `--config`: what the file says becomes the defaults of the command's other options.

    Raises:
        UserError: names file and line of what cannot be read, of an unknown option, and of a value that its option cannot have.
    """
    if value is None or context.resilient_parsing:
        return value
    known = {
        option.removeprefix("--"): parameter
        for parameter in context.command.params
        if parameter.param_type_name == "option" and not parameter.is_eager
        for option in parameter.opts
        if option.startswith("--")
    }
    passed_over: frozenset[str] = getattr(inspect.unwrap(context.command.callback), PASSED_OVER, frozenset())
    defaults: dict[str, Any] = {}
    places: dict[str, str] = {}
    for entry in entries(Path(value)):
        name = entry.name.replace("_", "-")
        parameter = known.get(name)
        if parameter is None and name in passed_over:
            continue
        if parameter is None:
            raise UserError(f"{entry.place}: no option {entry.name!r}; {_nearest(entry.name, list(known))}")
        if parameter.name in places:
            raise UserError(f"{entry.place}: {entry.name} is there twice ({places[parameter.name]}); give it once")
        places[parameter.name] = entry.place
        if entry.value is not None:
            defaults[parameter.name] = _converted(parameter, entry, context)
    context.default_map = {**(context.default_map or {}), **defaults}
    context.meta[LINES] = {max(p.opts, key=len): places[p.name] for p in known.values() if p.name in places}
    return value


def _converted(parameter: Any, entry: Entry, context: Any) -> Any:
    try:
        return parameter.process_value(context, entry.value)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise UserError(f"{entry.place}: {max(parameter.opts, key=len)}: {getattr(error, 'message', error)}") from None


def _nearest(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name.replace("_", "-"), known, 1)
    return f"did you mean {found[0]}?" if found else f"expected names of options: {', '.join(sorted(known))}"


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a YAML file: names with texts, numbers, true and false, or flat lists of these.

    Raises:
        UserError: it cannot be read, is no YAML, or holds something else; the message has file and line.
    """
    import yaml

    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > LARGEST:
        raise UserError(f"--config {path} has more than {LARGEST} characters; expected a few lines like `steps: 100`")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or type(error).__name__})") from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}, line {root.start_mark.line + 1}: expected lines like `steps: 100`")
    for key, value in root.value:
        place = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{place}: expected the name of an option before the colon")
        items = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(item, yaml.ScalarNode) for item in items):
            raise UserError(
                f'{place}: {key.value} has names or lists inside; expected a value, or a list of values (labels: "0=bad,1=good")'
            )
        if value.tag == "tag:yaml.org,2002:null":
            yield Entry(key.value, None, place)
        else:
            yield Entry(key.value, ",".join(item.value for item in items), place)
