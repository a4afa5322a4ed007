"""What a person sees while it runs, on stderr: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from blockzo.journal.outside import printable


class Reporter:
    """Says nothing; the interface of all reporters."""

    def say(self, text: str) -> None:
        """An action that takes time."""

    def warn(self, text: str) -> None:
        """Something the user should know."""

    def start(self, done: int, steps: int) -> None:
        """Training begins at step `done` of `steps`."""

    def step(self, line: dict[str, Any]) -> None:
        """A step is complete; `line` is its line of metrics."""

    def evaluating(self, done: int, rows: int) -> None:
        """Some held-out rows were scored."""

    def stop(self) -> None:
        """Nothing more will come; called on every way out."""


class Lines(Reporter):
    """Plain lines; steps at most every `seconds`, and those with an accuracy."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.steps = 0
        self._first = (0, 0.0)
        self._said = 0.0

    def say(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def start(self, done: int, steps: int) -> None:
        self.steps = steps
        self._first = (done, time.monotonic())

    def step(self, line: dict[str, Any]) -> None:
        now = time.monotonic()
        if "eval_loss" not in line and now - self._said < self.seconds:
            return
        self._said = now
        done = line["step"] - self._first[0]
        rate = done / max(1e-9, now - self._first[1])
        left = (self.steps - line["step"]) / rate if rate else 0.0
        self.say(f"step {line['step']}/{self.steps}  {describe(line)}  {rate:.2f} steps/s  {clock(left)} left")


class Bar(Lines):
    """A rich progress bar."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=False,
        )
        self._train: Any = None
        self._scores: Any = None
        self._best = ""

    def say(self, text: str) -> None:
        self.console.print(printable(text), style="dim", markup=False, highlight=False)

    def warn(self, text: str) -> None:
        self.console.print(printable(f"warning: {text}"), style="yellow", markup=False, highlight=False)

    def start(self, done: int, steps: int) -> None:
        super().start(done, steps)
        self.progress.start()
        self._train = self.progress.add_task("training", total=steps, completed=done, figures="")

    def step(self, line: dict[str, Any]) -> None:
        if "eval_loss" in line:
            self._best = describe({key: value for key, value in line.items() if key != "loss"})
        done = line["step"] - self._first[0]
        rate = done / max(1e-9, time.monotonic() - self._first[1])
        text = f"loss {line['loss']:.3f}  {self._best}  {rate:.2f} steps/s"
        self.progress.update(self._train, completed=line["step"], figures=text)

    def evaluating(self, done: int, rows: int) -> None:
        self.progress.start()
        if self._scores is None:
            self._scores = self.progress.add_task("held-out rows", total=rows, figures="")
        self.progress.update(self._scores, completed=done, total=rows)
        if done >= rows:
            self.progress.remove_task(self._scores)
            self._scores = None

    def stop(self) -> None:
        self.progress.stop()


def describe(line: dict[str, Any]) -> str:
    """The figures of a metrics line in words."""
    parts = []
    if line.get("loss") is not None:
        parts.append(f"loss {line['loss']:.3f}")
    if "accuracy" in line:
        parts.append(f"accuracy {line['accuracy']:.3f}")
    elif "perplexity" in line:
        parts.append(f"perplexity {line['perplexity']:.2f}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def reporter() -> Reporter:
    """A bar where stderr is a terminal, lines elsewhere."""
    return Bar() if sys.stderr.isatty() else Lines()
