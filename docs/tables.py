"""Writes the tables of the docs that are made from the code: options of the commands, tasks, aggregates of rounds, backends.

python docs/tables.py --write      # without --write: says which pages differ, and leaves with 1
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from blockzo.federated.protocol.aggregates import AGGREGATES
from blockzo.finetune.data.tasks import OTHERS, TASKS, WRITTEN_TASKS
from blockzo.finetune.option import named, options_of
from blockzo.finetune.settings import Settings
from blockzo.ops.backends.registry import BACKENDS
from blockzo.simulate.settings import Federation

DOCS = Path(__file__).resolve().parent


def options(form: type[Any]) -> str:
    """A table of the options of a dataclass under each of its headings."""
    groups: dict[str, list[str]] = {}
    found = options_of(form)
    for field in fields(form):
        option = found[field.name]
        default = option.suggested if field.default is MISSING else field.default
        told = f"`{default}`" if default is not None and not isinstance(default, bool) else ""
        names = f"`{named(field.name)}`" + (f", `{option.short}`" if option.short else "")
        only = "" if len(option.commands) > 1 or "simulate" in option.commands else f" (`{option.commands[0]}` alone)"
        also = "yes" if "evaluate" in option.commands else ""
        cells = [
            names,
            told,
            (option.page or option.help).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") + only,
        ]
        if form is Settings:
            cells.append(also)
        groups.setdefault(option.group, []).append(f"| {' | '.join(cells)} |")
    last = " of `evaluate` too |" if form is Settings else ""
    rule = "---|---|---|---|" if form is Settings else "---|---|---|"
    parts = [
        f"**{group}**\n\n| option | default | |{last}\n|{rule}\n" + "\n".join(rows) for group, rows in groups.items()
    ]
    return "\n\n".join(parts)


def tasks() -> str:
    """A line a task: its prompt for causal and for masked models, its label words, its metrics."""
    rows = [
        "| task | prompt | where masked models get another | label words | metrics beside |",
        "|---|---|---|---|---|",
    ]
    for task in TASKS.values():
        words = ", ".join(f"{label}: {word}" for label, word in task.words.items())
        cells = [
            f"`{task.name}`",
            _prompt(task.template),
            _prompt(task.masked_template),
            words,
            ", ".join(task.metrics),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    for written in WRITTEN_TASKS.values():
        cells = [
            f"`{written.name}`",
            _prompt(written.template),
            "",
            f"written: `{written.answer}`",
            ", ".join(written.metrics),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    for name, note in OTHERS.items():
        rows.append(f"| `{name}` | {note} | | | |")
    return "\n".join(rows)


def _prompt(template: str | None) -> str:
    return "" if template is None else "`" + template.replace("\n", "\\n").replace("|", "\\|") + "`"


def aggregates() -> str:
    """A line an aggregate: what it is, what it goes with, its options."""
    goes_with = ("weighted", "own_directions", "secure_sum", "central_noise", "local_steps")
    rows = ["| aggregate | | `weighting` | own directions | secure sums | central noise | local steps | options |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for name, kind in AGGREGATES.items():
        told = " ".join(inspect.getdoc(kind).partition("\n\n")[0].split())
        own = ", ".join(f"`{field.name}` = {field.default}" for field in fields(kind))
        cells = [f"`{name}`", told, *("yes" if getattr(kind, what) else "no" for what in goes_with), own]
        rows.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(rows)


def backends() -> str:
    """A line a backend: its kernels, what it serves, what to do where it is missing, switches, whether it ever ran there."""
    rows = ["| backend | kernels | serves | where it is missing | switches | state |", "|---|---|---|---|---|---|"]
    for entry in BACKENDS.values():
        cells = [
            f"`{entry.name}`",
            entry.what,
            f"{' and '.join(entry.devices)} tensors" if entry.devices else "all others",
            entry.advice,
            "; ".join(f"`{name}`: {what}" for name, what in entry.switches.items()),
            f"experimental: {entry.experimental}" if entry.experimental else "",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("finetune.md", "options"): lambda: options(Settings),
    ("finetune.md", "tasks"): tasks,
    ("federated.md", "options"): lambda: options(Federation),
    ("federated.md", "aggregates"): aggregates,
    ("extending/backend.md", "backends"): backends,
}


def with_table(text: str, name: str, table: str) -> str:
    """`text` with `table` between its marks.

    Raises:
        ValueError: the marks are not there once.
    """
    pattern = rf"(<!-- table {name}: python docs/tables.py --write -->\n).*?(<!-- end -->)"
    found, count = re.subn(pattern, lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{count} places for the table {name}; expected one")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    differ = 0
    for (page, name), make in TABLES.items():
        path = DOCS / page
        before = path.read_text(encoding="utf-8")
        after = with_table(before, name, make())
        if before != after:
            differ += 1
            print(f"{path.name}: {name}")
            if write:
                path.write_text(after, encoding="utf-8")
    return int(differ > 0 and not write)


if __name__ == "__main__":
    sys.exit(main())
