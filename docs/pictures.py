"""Draws docs/pictures/*.svg: `python docs/pictures.py`. A test holds the files to what this writes."""

from __future__ import annotations

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "pictures"
INK, PALE, EARLY, LATE, KEPT, NOTE = "#1f2430", "#6b7280", "#8fb3e0", "#f2b880", "#3f6fb0", "#b4533c"

SEEDS = "z: random directions, made from a seed while a layer runs, never stored."
ALIKE = "All make the same directions from the round's seed and apply the same record: the same bits everywhere."


def box(x: float, y: float, width: float, height: float, fill: str, text: str = "") -> str:
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{fill}"/>'
    return shape + (label(x + width / 2, y + height / 2 + 4, text) if text else "")


def label(x: float, y: float, text: str, size: int = 12, fill: str = INK, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{escape(text)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float, fill: str = PALE) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{fill}" stroke-width="1.3" marker-end="url(#tip)"/>'


def page(width: int, height: int, title: str, parts: list[str]) -> str:
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{PALE}"/></marker></defs>'
    )
    begin = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" role="img"><title>{escape(title)}</title>'
    )
    return "\n".join([begin, tip, f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *parts, "</svg>", ""])


def spzo() -> str:
    """Eight losses: each a whole forward, or two early halves whose outputs serve four late halves each."""
    rows, step, top = 8, 26, 66
    parts = [
        label(20, 24, "Four directions, both signs: eight losses", 15, anchor="start"),
        label(20, 46, "n-SPSA: eight whole forwards", 13, PALE, "start"),
        label(400, 46, "SPZO, 1 early direction x 4 late ones: the work of five", 13, PALE, "start"),
    ]
    for row in range(rows):
        y = top + row * step
        sign, direction = "+" if row < 4 else "\u2212", row % 4 + 1
        parts += [
            box(20, y, 120, 20, EARLY, f"early half {sign}z{direction}"),
            arrow(142, y + 10, 156, y + 10),
            box(158, y, 120, 20, LATE, f"late half {sign}z{direction}"),
            arrow(280, y + 10, 300, y + 10),
            label(318, y + 14, "loss"),
        ]
        parts += [
            arrow(548, top + (50 if row < 4 else 154), 578, y + 10, KEPT),
            box(580, y, 120, 20, LATE, f"late half {sign}z{direction}"),
            arrow(702, y + 10, 722, y + 10),
            label(740, y + 14, "loss"),
        ]
    for sign, y in (("+", top), ("\u2212", top + 4 * step)):
        parts += [
            box(400, y, 120, 98, EARLY, f"early half {sign}z"),
            arrow(521, y + 50, 531, y + 50),
            box(533, y, 14, 98, KEPT),
        ]
    parts += [
        label(540, top + 8 * step + 12, "kept output", 12, KEPT),
        label(160, top + 8 * step + 12, "8 x early + 8 x late", 12, PALE),
        label(700, top + 8 * step + 12, "2 x early + 8 x late", 12, PALE),
        label(20, top + 8 * step + 40, SEEDS, 12, PALE, "start"),
    ]
    return page(780, top + 8 * step + 56, "SPZO runs the early half twice and the late half eight times", parts)


def journal() -> str:
    """A step becomes a record; the base model and the records give the trained model."""
    parts = [
        label(20, 24, "A step is a record; the journal is the fine-tune", 15, anchor="start"),
        box(20, 50, 120, 60, EARLY, "losses of a step"),
        arrow(142, 80, 186, 80),
        box(190, 50, 150, 60, LATE),
        label(265, 72, "record", 13),
        label(265, 92, "seed, rate, scalars", 11),
        arrow(342, 80, 386, 80),
        label(364, 70, "fsync", 11, PALE),
        *(box(390 + 30 * place, 50, 26, 60, LATE) for place in range(6)),
        label(478, 130, "journal.bz: 72 bytes for a MeZO step", 12, PALE),
        arrow(580, 80, 624, 80),
        box(628, 50, 130, 60, EARLY),
        label(693, 76, "weights move", 12),
        label(693, 94, "along the noise", 11),
        label(20, 172, "Replay, anywhere and later, without data:", 13, anchor="start"),
        box(20, 186, 120, 40, EARLY, "base model"),
        label(160, 211, "+", 16),
        *(box(180 + 30 * place, 186, 26, 40, LATE) for place in range(6)),
        arrow(364, 206, 406, 206),
        box(410, 186, 220, 40, KEPT),
        label(520, 211, "the same weights, bit for bit", 12, "#ffffff"),
    ]
    return page(780, 244, "Records in a journal, and their replay", parts)


def federated() -> str:
    """One round: a seed down, scalars up, one record to all."""
    parts = [
        label(20, 24, "One federated round: only scalars travel", 15, anchor="start"),
        box(330, 46, 120, 50, LATE, "server"),
        label(390, 112, "no weights, a journal", 11, PALE),
    ]
    for place, name in enumerate(("client A", "client B", "client C")):
        x = 60 + 250 * place
        parts += [
            box(x, 190, 160, 60, EARLY),
            label(x + 80, 212, name, 13),
            label(x + 80, 232, "own rows, whole model", 11),
            arrow(390 - 10, 120, x + 70, 186),
            arrow(x + 90, 186, 390 + 10, 120, NOTE),
        ]
    parts += [
        label(120, 140, "down: the last record", 12, PALE),
        label(660, 140, "up: one scalar a direction", 12, NOTE),
        label(390, 280, ALIKE, 12, PALE),
    ]
    return page(780, 296, "Server and clients exchange scalars", parts)


ROOMS = (
    (("cli", "commands, options"),),
    (("integrations", "Trainer, TRL, PEFT"),),
    (("simulate", "virtual clients"),),
    (("federated", "rounds: protocol, server, client, privacy, secagg, flower"),),
    (("finetune", "tasks, data, models, runs"),),
    (("optim", "ZO, executors, costs, ranks"),),
    (("methods", "trees, one class a method, planner"),),
    (("perturb", "models with perturbed weights; blocks, groups"),),
    (("ops", "operations on lists of tensors; backends"),),
    (("kernels", "Triton"), ("journal", "records, format, file")),
    (("noise", "the random numbers, in plain torch"),),
    (("contract", "names and ranges"),),
)
"""From what a user types down to what a random number is; rooms of one line do not know each other."""


def rooms() -> str:
    """The rooms of the package, each above those that it may import."""
    parts = [label(20, 24, "Rooms: imports go down, never up", 15, anchor="start")]
    for row, line in enumerate(ROOMS):
        y, width = 40 + row * 34, 640 / len(line)
        for place, (name, what) in enumerate(line):
            x = 20 + place * width
            parts += [
                box(x, y, width - 6, 28, LATE if row < 5 else EARLY),
                label(x + 12, y + 19, name, 13, anchor="start"),
                label(x + 100, y + 19, what, 12, anchor="start"),
            ]
    parts += [arrow(690, 46, 690, 40 + 34 * len(ROOMS) - 10), label(706, 60, "imports", 12, PALE, "start")]
    return page(780, 56 + 34 * len(ROOMS), "The rooms of the package in the order of imports", parts)


PICTURES = {"rooms.svg": rooms, "spzo.svg": spzo, "journal.svg": journal, "federated.svg": federated}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
