"""Prompts as templates: text with `{column}` for columns of the data and `{label}` where the label word stands."""

from __future__ import annotations

import re
from collections.abc import Mapping

from blockzo.finetune.errors import UserError

ANSWER = "label"
"""The place of the label word in a template, `{label}`; `{mask}` means the same."""

BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def pieces(template: str) -> list[tuple[str, str | None]]:
    """A template as pairs of literal text and the name of the column after it, or None where none comes.

    Raises:
        UserError: unbalanced or empty braces.
    """
    found: list[tuple[str, str | None]] = []
    literal, at = "", 0
    for match in BRACES.finditer(template):
        literal += template[at : match.start()]
        at = match.end()
        if match.group() in ("{{", "}}"):
            literal += match.group()[0]
        elif not (match.group(1) or "").strip():
            raise UserError(
                f'template {template!r}: {match.group()!r} at character {match.start() + 1}; expected text like "{{text}} It was '
                '{label}.", with the name of a column in braces, and {{ or }} for a brace'
            )
        else:
            found.append((literal, match.group(1).strip()))
            literal = ""
    return [*found, (literal + template[at:], None)]


def render(template: str, columns: Mapping[str, str]) -> str:
    """The template with its columns filled in; braces in these stay text."""
    return "".join(text + ("" if name is None else columns[name]) for text, name in pieces(template))


def written(found: list[tuple[str, str | None]]) -> str:
    return "".join(
        text.replace("{", "{{").replace("}", "}}") + ("" if name is None else f"{{{name}}}") for text, name in found
    )


def fields(template: str) -> tuple[str, ...]:
    """The columns that a template reads, in order.

    Raises:
        UserError: unbalanced braces, more than one `{label}`, or no column at all.
    """
    names = [name for _, name in pieces(template) if name is not None]
    columns = [name for name in names if name not in (ANSWER, "mask")]
    if len(names) - len(columns) > 1:
        raise UserError(
            f"template {template!r} has the label word more than once; expected one {{label}} (or {{mask}})"
        )
    if not columns:
        raise UserError(
            f'template {template!r} reads no column of the data; expected text like "{{text}} It was {{label}}."'
        )
    return tuple(dict.fromkeys(columns))
