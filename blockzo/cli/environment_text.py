"""The report of `blockzo env` as indented text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_text(found: Mapping[str, Any], healthy: bool) -> str:
    lines: list[str] = []

    def put(name: str, value: Any, depth: int) -> None:
        pad = "  " * depth
        if isinstance(value, Mapping):
            lines.append(f"{pad}{name}:" if value else f"{pad}{name}: none")
            for key, entry in value.items():
                put(str(key), entry, depth + 1)
        elif isinstance(value, (list, tuple)) and any(isinstance(entry, (Mapping, list, tuple)) for entry in value):
            lines.append(f"{pad}{name}:")
            for place, entry in enumerate(value):
                put(str(place), entry, depth + 1)
        else:
            lines.append(f"{pad}{name}: {_plain(value)}")

    for name, value in found.items():
        if name == "operations" and isinstance(value, Mapping) and "error" not in value:
            lines += _table(value)
        else:
            put(name, value, 0)
    lines.append("all is well" if healthy else "something is wrong: see the entries `error` and `failed` above")
    return "\n".join(lines)


def _table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Operations x backends as yes or a number, and the numbered reasons below."""
    lines, reasons = ["operations:"], list[str]()
    for operation, backends in found.items():
        cells = []
        for backend, entry in backends.items():
            if entry is not True and _plain(entry) not in reasons:
                reasons.append(_plain(entry))
            mark = "yes" if entry is True else f"no ({reasons.index(_plain(entry)) + 1})"
            cells.append(f"{backend} {mark:<8}")
        lines.append(f"  {operation:<18}{'  '.join(cells)}".rstrip())
    return lines + [f"  ({number}) {reason}" for number, reason in enumerate(reasons, 1)]


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) if value else "none"
    return str(value).strip().replace("\n", "\n      ")
