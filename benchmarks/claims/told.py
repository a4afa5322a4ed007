"""What a suite found, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import table
from benchmarks.claims.claim import Claim
from benchmarks.claims.judge import TOLD, Judged
from benchmarks.claims.suite import NOT_MEASURED, Finding

COLUMNS = ("case", "metric", "p20", "p50", "p80", "unit", "target", "rounds", "machine", "threads", "date", "versions")


def readme() -> list[tuple[str, str]]:
    """(what, measured) of README's figures."""
    rows = [line.strip("| ").split(" | ") for line in table.headlines().splitlines()[2:]]
    return [(row[0].replace("**", ""), row[1]) for row in rows]


def text(found: Sequence[Finding], quick: bool) -> str:
    stated, lines = readme(), list[str]()
    for one in found:
        claim = one.claim
        part = ", in part" if quick and claim.not_in_quick else ""
        lines.append(f"{one.verdict or NOT_MEASURED}{part}: {claim.name} ({one.seconds:.0f} s). {claim.says}")
        if claim.headline is not None:
            lines.append(f"    README: {stated[claim.headline][1]}")
        if one.problem:
            lines.append(f"    {one.problem}")
        lines += [f"    {_line(judged)}" for judged in one.judged]
        if quick and claim.not_in_quick:
            lines.append(f"    {NOT_MEASURED}: {claim.not_in_quick} (full: blockzo bench --only {claim.name})")
    return "\n".join(lines)


def _line(one: Judged) -> str:
    row = one.row
    spread = "" if row["rounds"] == "1" else f" ({row['p20']} to {row['p80']})"
    value = f"{row['p50']} {row['unit']}".strip()
    told = f": {one.why}" if one.verdict != TOLD or one.against is None else ""
    return f"{one.verdict:11s} {row['case']}, {row['metric']}: {value}{spread}{told}"


def as_json(found: Sequence[Finding], quick: bool, facts: dict[str, Any]) -> dict[str, Any]:
    stated = readme()
    return {
        **facts,
        "quick": quick,
        "claims": [
            {
                "name": one.claim.name,
                "says": one.claim.says,
                "readme": None if one.claim.headline is None else stated[one.claim.headline][1],
                "verdict": one.verdict or NOT_MEASURED,
                "seconds": round(one.seconds, 1),
                "problem": one.problem or None,
                "not_measured": (one.claim.not_in_quick or None) if quick else None,
                "figures": [_figure(judged) for judged in one.judged],
            }
            for one in found
        ],
    }


def _figure(one: Judged) -> dict[str, Any]:
    def told(row: Any) -> dict[str, Any]:
        return {name: float(row[name]) if name in ("p20", "p50", "p80") else row[name] for name in COLUMNS}

    return {**told(one.row), "verdict": one.verdict, "why": one.why, "committed": one.against and told(one.against)}


def listed(claims: Sequence[Claim], single: Sequence[str]) -> str:
    lines = ["claims, in their order (blockzo bench, or --only NAME):"]
    for claim in claims:
        quick = f"{claim.seconds:.0f} s quick, " if claim.quick else ""
        full = f"{claim.minutes:.0f} min" if claim.minutes < 120 else f"{claim.minutes / 60:.0f} h"
        mark = "README" if claim.headline is not None else ""
        lines.append(f"  {claim.name:15s} {mark:6s} {quick + full:>20s}  {claim.says}")
    return "\n".join(
        [*lines, "", "single benchmarks (blockzo bench NAME, with their own options):", f"  {', '.join(single)}"]
    )
