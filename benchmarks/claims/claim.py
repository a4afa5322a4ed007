"""A claim: a sentence, the benchmark that measures it, and which rows of a results file are its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import Table


@dataclass(frozen=True)
class Claim:
    """
    Attributes:
        says: in a sentence.
        cases, metrics: how the cases and metrics of its rows begin; no metrics: all.
        commands: what measures it at full size; each follows `python benchmarks/`.
        minutes: that they take on two cores, about.
        headline: the line of README's figures that it stands for, from 0.
        quick: fills a table in about `seconds` on two quiet cores, where that can be done; rows of one case and metric have
            one meaning at both sizes.
        ahead: begins what a quick size may do in processes of its own while earlier claims are measured.
        full: after the commands, figures that come from what they left in their `{folder}`.
        within: share of a figure by which the committed p20..p80 is widened before a spread is called outside of it.
        fixed: metrics that machine and load cannot move (counts, numbers of a fixed seed), each with the share that it may
            differ by; a results file keeps five digits.
        by_goal: metrics that differ between machines and are judged by their goal alone.
        not_in_quick: what of the headline the quick size does not measure, why, and what is checked in its place.
    """

    name: str
    says: str
    cases: tuple[str, ...]
    commands: tuple[str, ...]
    minutes: float
    metrics: tuple[str, ...] = ()
    headline: int | None = None
    quick: Callable[[Table], None] | None = None
    seconds: float = 0.0
    ahead: Callable[[], object] | None = None
    full: Callable[[Table, Path], None] | None = None
    within: float = 0.1
    fixed: Mapping[str, float] = field(default_factory=dict)
    by_goal: tuple[str, ...] = ()
    not_in_quick: str = ""

    def holds(self, row: Mapping[str, str]) -> bool:
        """Whether a row of a results file is a figure of this claim."""
        return row["case"].startswith(self.cases) and (not self.metrics or row["metric"].startswith(self.metrics))
