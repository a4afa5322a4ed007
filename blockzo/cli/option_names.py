"""Errors speak of options as they are typed: `--max-length`, not `max_length`; in one place, for every command."""

from __future__ import annotations

import re
from collections.abc import Mapping


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
