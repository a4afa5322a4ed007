"""The metrics of a simulation: a line a round, with sums from the beginning and scores where they are due."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from blockzo.federated.server.server import Server
from blockzo.finetune import output
from blockzo.finetune.interrupt import Interrupts
from blockzo.finetune.metrics import HeldOutScores, measure
from blockzo.finetune.prepare import Prepared
from blockzo.finetune.progress import Reporter
from blockzo.finetune.settings import Settings

EVALUATION_BATCH = 32


class Lines:
    """Writes the lines and measures what they need; `metrics` is open for its length."""

    def __init__(
        self,
        settings: Settings,
        prepared: Prepared,
        reporter: Reporter,
        interrupts: Interrupts,
        metrics: output.Metrics,
        began: float,
    ) -> None:
        self.settings, self.prepared, self.reporter = settings, prepared, reporter
        self.interrupts, self.metrics = interrupts, metrics
        self.rows = prepared.evaluation_rows(settings)
        self._began, self._earlier = began, 0.0

    def begin(self) -> HeldOutScores:
        """The scores before training, from the first line where a simulation goes on."""
        if self.metrics.steps >= 0:
            self._earlier = self.metrics.lines[-1]["seconds"]
            return HeldOutScores.from_dict(self.metrics.lines[0]["before"])
        self.reporter.say("scoring the held-out rows before training")
        before = self.scores()
        zero = dict.fromkeys(("flops", "up", "down", "forwards", "overhead"), 0)
        line = {"step": 0, "loss": None, "clients": 0, **zero, **self._evaluation()}
        self.metrics.append({**line, "before": before.as_dict(), "seconds": 0.0})
        return before

    def add(
        self,
        loss: float | None,
        clients: int,
        epsilon: float | None = None,
        metrics: Mapping[str, float] | None = None,
        **found: float,
    ) -> None:
        """One round's line, with the owner's `metrics`; what is `found` stands there as a sum from the beginning."""
        last = self.metrics.lines[-1]
        line: dict[str, Any] = {"step": len(self.metrics.lines), "loss": loss, "clients": clients}
        line |= {name: last[name] + value for name, value in found.items()}
        if epsilon is not None:
            line["epsilon"] = epsilon
        if metrics:
            line["metrics"] = dict(metrics)
        if self._scored(line["step"]):
            line |= self._evaluation()
        self.metrics.append({**line, "seconds": round(self._earlier + time.monotonic() - self._began, 3)})
        self.reporter.step(self.metrics.lines[-1])

    def fill(self, server: Server) -> None:
        """A kill between journal and metrics leaves a round without a line; its costs are taken to be those of the one before."""
        private = server.settings.private
        for record in server.journal.records()[self.metrics.steps :]:
            last, former = self.metrics.lines[-1], self.metrics.lines[max(0, len(self.metrics.lines) - 2)]
            line = {
                "step": len(self.metrics.lines),
                "loss": math.fsum(record.losses) / len(record.losses),
                "clients": last["clients"],
                "filled": True,
            }
            if private is not None:
                line |= {"loss": None, "epsilon": private.epsilon(record.step + 1)}
            for name in ("flops", "up", "down", "forwards", "overhead"):
                line[name] = 2 * last[name] - former[name]
            if self._scored(line["step"]) and line["step"] == server.number:
                line |= self._evaluation()
            self.metrics.append({**line, "seconds": last["seconds"]})

    def _scored(self, number: int) -> bool:
        return number % self.settings.interval == 0 or number == self.settings.steps

    def scores(self, rows: Sequence[int] | None = None) -> HeldOutScores:
        """Of held-out rows, all where None."""

        def progress(done: int, total: int) -> None:
            self.interrupts.check()
            self.reporter.evaluating(done, total)

        prepared = self.prepared
        rows = range(len(prepared.held_out.ids)) if rows is None else rows
        values = measure(prepared.model, prepared.scorer, prepared.held_out, rows, EVALUATION_BATCH, progress)
        return prepared.scores(values, rows)

    def _evaluation(self) -> dict[str, Any]:
        found = self.scores(self.rows).as_dict()
        return {"eval_rows": found.pop("rows"), "eval_loss": found.pop("loss"), **found}
