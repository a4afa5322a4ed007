"""What a model card says of a model that was trained without gradients, beside its journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockzo import __version__
from blockzo.journal.file import Journal

TITLE = "## Trained with forward passes only"


def section(journal: Journal | None, settings: dict[str, Any], steps: int) -> str:
    """Markdown."""
    method = {**settings["method"]}
    name = method.pop("name")
    shown = ", ".join(f"{key}={value}" for key, value in method.items())
    rates = settings["block_rates"] or settings["learning_rate"]
    lines = [
        TITLE,
        "",
        f"By zeroth-order optimisation with [blockzo](https://github.com/blockzo/blockzo) {__version__}: {steps} steps of "
        f"{name}({shown}), {settings['distribution']} noise, eps {settings['eps']}, learning rate {rates} "
        f"({settings['schedule']}), weight decay {settings['weight_decay']}, {settings['rows']} x {settings['accumulated']} "
        f"rows a step and process, seed {settings['seed']}. No gradient was computed.",
    ]
    if journal is not None and journal.exact:
        lines += [
            "",
            f"`journal.bz` holds every step. It begins at weights `{journal.base_digest}`, and gives these weights again, "
            "bit for bit, without data:",
            "",
            "```python",
            *_program(journal),
            "```",
        ]
    return "\n".join(lines) + "\n"


def _program(journal: Journal) -> list[str]:
    if "adapter" in journal.metadata:
        return [
            "import blockzo as bz",
            "from blockzo.integrations.peft import rebuild",
            "",
            'model = rebuild(base_model, bz.Journal.open("journal.bz"))',
        ]
    return [
        "import blockzo as bz",
        "",
        'journal = bz.Journal.open("journal.bz")',
        "assert bz.digest(model) == journal.base_digest",
        "bz.replay_(model, journal.records(), journal.layout)",
    ]


def add(card: Path, text: str) -> None:
    """Puts the section at the end of a card, in place of an earlier one."""
    before = card.read_text(encoding="utf-8") if card.exists() else ""
    # the optimizer that the Trainer names was not used
    lines = [line for line in before.partition(TITLE)[0].splitlines() if not line.startswith("- optimizer:")]
    card.write_text("\n".join(lines).rstrip() + "\n\n" + text, encoding="utf-8")
