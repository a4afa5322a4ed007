"""Sums up the zoo: how many combinations were tried, and what came of them."""

from __future__ import annotations

from collections import Counter
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    total: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, counts in report.user_properties:
                    if name == "zoo":
                        total.update(counts)
    if total:
        found = ", ".join(f"{total[kind]} {kind}" for kind in ("wrong", "refused", "right", "blunt"))
        terminalreporter.write_line(f"zoo: {sum(total.values())} combinations, {found}")
