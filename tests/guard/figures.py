"""The counts that are committed (`counts.json`), and what stands against them: one rule for all kinds of counts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

COUNTS = Path(__file__).with_name("counts.json")
TOLERANCE = {"instructions": 0.02, "loop": 0.02, "passes": 0.1}
"""How far a count may lie from the committed one, as a share of it; all others are exact. Passes are read off a cache, where the
last lines may lie here or there.
"""

Figures = Mapping[str, Mapping[str, float]]
"""What was counted -> kind of count -> number."""


def committed(path: Path = COUNTS) -> dict[str, dict[str, dict[str, float]]]:
    """Section -> figures. A section names what its counts depend on: compiler, torch, Triton."""
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def write(section: str, found: Figures, path: Path = COUNTS) -> None:
    """Puts figures in place of a section, one of them a line, so that a diff shows which ones changed."""
    every = {**committed(path), section: found}
    texts = []
    for name, figures in sorted(every.items()):
        lines = [f"  {json.dumps(case)}: {json.dumps(counts)}" for case, counts in sorted(figures.items())]
        texts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    path.write_text("{\n" + ",\n".join(texts) + "\n}\n")


def differences(found: Figures, recorded: Figures, whole: bool = True) -> list[str]:
    """What is worse, better or other than recorded, one line each; `whole`: everything recorded is to be found."""
    told = [f"{case}: no figure is recorded" for case in found if case not in recorded]
    if whole:
        told += [f"{case}: recorded, and no longer counted" for case in recorded if case not in found]
    for case in found:
        if case not in recorded:
            continue
        for kind in {**recorded[case], **found[case]}:
            new, old = found[case].get(kind), recorded[case].get(kind)
            if new is None or old is None:
                told.append(f"{case}: {kind} is {new}; {old} is recorded")
            elif abs(new - old) > TOLERANCE.get(kind, 0.0) * abs(old):
                far = f"{abs(new / old - 1):.1%} " if old else ""
                allowed = f", and {TOLERANCE[kind]:.0%} is allowed" if kind in TOLERANCE else ""
                worse = "WORSE, more" if new > old else "better, fewer"
                told.append(f"{case}: {new:,} {kind}; {old:,} recorded: {far}{worse}{allowed}")
    return told


def explained(section: str, told: list[str]) -> str:
    return "\n".join(
        [
            f"{len(told)} counts of {section!r} are not those of {COUNTS.parent.name}/{COUNTS.name}:",
            *(f"  {line}" for line in told),
            "A count that is worse: find what does more, and undo it. One that is better, new or worth its price: record it by",
            f"  python -m tests.guard --write {section.split()[0]}",
            "and say in the commit message what changed it.",
        ]
    )


class NoFigures(Exception):
    """Nothing is recorded for this compiler or this version."""


def check(section: str, found: Figures, whole: bool = True, path: Path = COUNTS) -> None:
    """Compares with what is committed.

    Raises:
        AssertionError: a count differs; or, in CI (BLOCKZO_CI=1), nothing is recorded for the section.
        NoFigures: nothing is recorded for the section, elsewhere.
    """
    recorded = committed(path).get(section)
    if recorded is None:
        kind = section.split()[0]
        others = sorted(name for name in committed(path) if name.split()[0] == kind)
        told = f"no counts are recorded for {section!r}, only for {others}: python -m tests.guard --write {kind}"
        if os.environ.get("BLOCKZO_CI"):
            raise AssertionError(told)
        raise NoFigures(told)
    if told := differences(found, recorded, whole):
        raise AssertionError(explained(section, told))


def holds(section: str, found: Figures) -> None:
    """`check` for a test, which is skipped where nothing is recorded."""
    import pytest

    try:
        check(section, found)
    except NoFigures as reason:
        pytest.skip(str(reason))
