"""A measured row against the committed ones: reproduced, outside, or what else can be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.claims.claim import Claim

REPRODUCED, OUTSIDE, ORDER, TOLD = "reproduced", "outside", "order holds", "told"
"""`ORDER`: nothing of this machine is committed, and the figure lies on that side of its goal on which a committed one lies.
`TOLD`: there is nothing to compare it with, or it is seconds, which no two machines share."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Judged:
    row: Row
    verdict: str
    why: str
    against: Row | None = None


def judge(row: Row, committed: Sequence[Row], claim: Claim) -> Judged:
    """What the committed rows say of a measured one; those of the same case and metric are asked, its own benchmark's first."""
    if row["metric"] in claim.by_goal:
        met = reaches(row, row["target"])
        return Judged(row, REPRODUCED if met else OUTSIDE, f"{'meets' if met else 'misses'} {row['target']}")
    known = [one for one in committed if (one["case"], one["metric"]) == (row["case"], row["metric"])]
    known.sort(key=lambda one: (one["machine"] != row["machine"], one["benchmark"] != row["benchmark"]))
    if not known:
        return Judged(row, TOLD, "no committed figure")
    if row["metric"] in claim.fixed:
        return _fixed(row, known, claim.fixed[row["metric"]])
    own = [one for one in known if (one["machine"], one["threads"]) == (row["machine"], row["threads"])]
    if row["unit"] == "s":
        return Judged(row, TOLD, "seconds are not compared", own[0] if own else None)
    if own:
        return _spread(row, own[0], claim.within, [one for one in known if one["machine"] != row["machine"]])
    return _order(row, known)


def _fixed(row: Row, known: Sequence[Row], share: float) -> Judged:
    value = float(row["p50"])
    for one in known:
        other = float(one["p50"])
        if abs(value - other) <= share * abs(other):
            return Judged(row, REPRODUCED, f"{_told(share)} of {other:g}", one)
    return Judged(row, OUTSIDE, f"not {_told(share)} of {known[0]['p50']}", known[0])


def _told(share: float) -> str:
    return f"within {100 * share:g}%"


def _spread(row: Row, one: Row, share: float, others: Sequence[Row]) -> Judged:
    slack = share * abs(float(one["p50"]))
    low, high = float(one["p20"]) - slack, float(one["p80"]) + slack
    inside = float(row["p20"]) <= high and float(row["p80"]) >= low
    told = f"{one['p50']} ({one['p20']} to {one['p80']}) of this machine, widened by {100 * share:g}%"
    told += "".join(f"; {other['p50']} on {other['machine']}" for other in others)
    return Judged(row, REPRODUCED if inside else OUTSIDE, f"{'meets' if inside else 'does not meet'} {told}", one)


def _order(row: Row, known: Sequence[Row]) -> Judged:
    machines = ", ".join(sorted({one["machine"] for one in known}))
    bound = row["target"] or known[0]["target"]
    if not bound:
        return Judged(row, TOLD, f"committed for other machines ({machines}), and without a goal", known[0])
    met = reaches(row, bound)
    same = [one for one in known if reaches(one, bound) == met]
    if met or same:
        side = "meets" if met else "misses"
        return Judged(row, ORDER, f"{side} {bound}; committed for other machines ({machines})", (same or known)[0])
    return Judged(row, OUTSIDE, f"misses {bound}, which is met on {machines}", known[0])


def reaches(row: Row, bound: str) -> bool:
    """Whether a row's median meets a bound as results files write it: `>= 2`."""
    sign, _, value = bound.partition(" ")
    return float(row["p50"]) >= float(value) if sign == ">=" else float(row["p50"]) <= float(value)
