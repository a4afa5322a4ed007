"""Runs claims in order: what is measured is judged and saved claim by claim, so a stop loses the claim in progress alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.claims.claim import Claim
from benchmarks.claims.judge import ORDER, OUTSIDE, REPRODUCED, TOLD, Judged, judge
from benchmarks.harness import Table, read

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = "claims"
FAILED, NOT_MEASURED = "failed", "not measured here"


@dataclass
class Finding:
    """What became of a claim. `problem`: why it could not be measured to its end."""

    claim: Claim
    judged: list[Judged] = field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""

    @property
    def verdict(self) -> str:
        """The worst of its figures; "" before it is measured."""
        found = {one.verdict for one in self.judged}
        if self.problem:
            return FAILED
        return next((one for one in (OUTSIDE, ORDER, REPRODUCED, TOLD) if one in found), "")


@dataclass
class Suite:
    """A request. `output`: the results file that rows go to; None: nowhere. `committed`: what they are compared with."""

    claims: Sequence[Claim]
    quick: bool
    output: Path | None
    committed: list[dict[str, str]]
    say: Callable[[str], None]
    done: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Rows by command at full size: two claims may share one."""

    def run(self) -> list[Finding]:
        """All claims.

        Raises:
            Stopped: with what was found before.
        """
        found: list[Finding] = []
        began = time.monotonic()
        for claim in self.claims:
            if self.quick and claim.ahead is not None and claim is not self.claims[0]:
                claim.ahead()
        for number, claim in enumerate(self.claims, 1):
            self.say(f"[{number}/{len(self.claims)}] {claim.name}: {claim.says} {self.left(number - 1, began)}")
            finding = Finding(claim)
            start = time.monotonic()
            try:
                rows = self.measured(claim)
            except KeyboardInterrupt:
                raise Stopped(found) from None
            except Exception as error:
                rows, finding.problem = [], f"{type(error).__name__}: {error}"
                self.say(f"{claim.name} failed: {finding.problem}")
            finding.seconds = time.monotonic() - start
            finding.judged = [judge(row, self.committed, claim) for row in rows if claim.holds(row)]
            found.append(finding)
        return found

    def left(self, done: int, began: float) -> str:
        """Time left: what claims state, at the pace of those that are over."""
        stated = [claim.seconds if self.quick else 60 * claim.minutes for claim in self.claims]
        spent = sum(stated[:done])
        pace = (time.monotonic() - began) / spent if spent > 20 else 1.0
        seconds = pace * sum(stated[done:])
        return f"(about {seconds:.0f} s left)" if seconds < 300 else f"(about {seconds / 60:.0f} min left)"

    def measured(self, claim: Claim) -> list[dict[str, str]]:
        """A claim's rows, saved."""
        table = Table(BENCHMARK, self.output or Path(os.devnull))
        if self.quick:
            assert claim.quick is not None
            # stdout is for the result
            with contextlib.redirect_stdout(sys.stderr):
                claim.quick(table)
            for row in table.rows:
                row["command"] = f"blockzo bench --quick --only {shlex.quote(claim.name)}"
        else:
            with tempfile.TemporaryDirectory() as folder:
                for command in claim.commands:
                    table.rows += self.carried_out(command, Path(folder))
                if claim.full is not None:
                    with contextlib.redirect_stdout(sys.stderr):
                        claim.full(table, Path(folder))
        if self.output is not None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            table.save()
        return table.rows

    def carried_out(self, command: str, folder: Path) -> list[dict[str, str]]:
        """The rows of a benchmark in a process of its own."""
        if command not in self.done:
            self.say(f"python benchmarks/{command}")
            rows = folder / "results.csv"
            script, *words = shlex.split(command.replace("{folder}", str(folder)))
            subprocess.run(
                [sys.executable, str(ROOT / "benchmarks" / script), *words],
                env={**os.environ, "BLOCKZO_RESULTS": str(rows)},
                stdout=sys.stderr,
                cwd=ROOT,
                check=True,
            )
            self.done[command] = read(rows)
            rows.unlink(missing_ok=True)
        return self.done[command]


class Stopped(Exception):
    """Ctrl-C or a signal; `found`: the claims that were over."""

    def __init__(self, found: list[Finding]) -> None:
        super().__init__("stopped")
        self.found = found


def outside(found: Sequence[Finding]) -> bool:
    return any(one.verdict in (OUTSIDE, FAILED) for one in found)
