"""A run that was stopped anywhere ends with the bits, and the files, of one that was not."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockzo import Journal
from blockzo.finetune import Interrupted, Settings, UserError, finetune, output, resume
from blockzo.finetune.interrupt import Interrupts
from tests.finetune.process import blockzo, started
from tests.warm import Started

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]
STEPS = 5


def files(folder: Path) -> dict[str, Any]:
    """What must be equal: the model and the journal byte for byte, and all metrics but the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": (folder / "model" / "model.safetensors").read_bytes(),
        "journal": (folder / "journal.bz").read_bytes(),
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "after": json.loads((folder / "summary.json").read_text())["after"],
        "png": (folder / "curve.png").stat().st_size > 0,
    }


def arguments(model: Path, rows: Rows, steps: int = STEPS, **options: str) -> dict[str, str]:
    own = {
        "model": str(model),
        "task": "custom",
        "template": "{text} it was {label}.",
        "labels": "0=bad,1=good",
        "train": str(rows(60)),
        "validation": str(rows(20, "held.tsv")),
        "method": "spzo",
        "inner": "2",
        "batch": "6",
        "eval_every": "2",
        "lr": "1e-3",
        "weight_decay": "0.1",
        "threads": "1",
        "steps": str(steps),
    }
    return {**own, **options}


def settings(told: dict[str, str]) -> Settings:
    numbers = {name: int(told[name]) for name in ("inner", "batch", "eval_every", "threads", "steps")}
    return Settings(**{**told, **numbers, "weight_decay": float(told["weight_decay"])})  # type: ignore[arg-type]


def options(told: dict[str, str]) -> list[str]:
    return [part for name, value in told.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture
def whole(tiny: Tiny, rows: Rows, tmp_path: Path) -> dict[str, Any]:
    finetune(settings(arguments(tiny("llama"), rows)), tmp_path / "whole")
    return files(tmp_path / "whole")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program handles it."""


@pytest.mark.parametrize("line", range(STEPS + 1))
def test_killed_between_the_journal_and_the_metrics(
    whole: dict[str, Any], tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any, line: int
) -> None:
    """The record of a step is on disk, its line of metrics (with an accuracy or without) is not."""
    out = tmp_path / "out"
    original = output.Metrics.append

    def append(self: output.Metrics, entry: dict[str, Any]) -> None:
        if entry["step"] == line:
            raise Killed
        original(self, entry)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(output.Metrics, "append", append)
        finetune(settings(arguments(tiny("llama"), rows)), out)
    assert len(Journal.open(out / "journal.bz")) == line
    resume(out, {})
    assert files(out) == whole


def test_killed_after_the_end_of_the_journal(
    whole: dict[str, Any], tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"

    def save(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("blockzo.finetune.report.save", save)
        finetune(settings(arguments(tiny("llama"), rows)), out)
    assert Journal.open(out / "journal.bz").finished and not (out / "model").exists()
    resume(out, {})
    assert files(out) == whole


@pytest.mark.parametrize("cut", ["torn line", "no metrics", "later lines", "torn record"])
def test_metrics_are_rebuilt_from_the_journal(whole: dict[str, Any], tmp_path: Path, cut: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "whole", out)
    metrics, journal = out / "metrics.jsonl", out / "journal.bz"
    if cut == "torn line":
        metrics.write_bytes(metrics.read_bytes()[:-30])
    elif cut == "no metrics":
        metrics.unlink()
    else:
        # the journal lost its end and half of its last record; the metrics know more than it does
        data = journal.read_bytes()
        for end in range(len(data) - 1, 0, -1):
            journal.write_bytes(data[:end])
            found = Journal.open(journal)
            if len(found) == STEPS - 2 and (cut == "later lines" or found.dropped > 20):
                break
    shutil.rmtree(out / "model")
    resume(out, {})
    assert files(out) == whole


def test_sigkill_of_the_real_process(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = arguments(tiny("llama"), rows, steps=12)
    finetune(settings(told), tmp_path / "whole")
    out = tmp_path / "out"
    start = [*options(told), "--output", str(out)]
    process = started("finetune", *start)
    metrics = out / "metrics.jsonl"
    wait(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 4, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "summary.json").exists(), "the run was over before it was killed"
    done = blockzo("finetune", "--resume", "--output", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 12
    assert files(out) == files(tmp_path / "whole")


def test_sigint_ends_the_step_and_says_how_to_go_on(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = arguments(tiny("llama"), rows, steps=5000)
    process = started("finetune", *options(told), "--output", out, "--json")
    metrics = out / "metrics.jsonl"
    wait(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr
    again = f"blockzo finetune --resume --output {out}"
    assert again in stderr
    assert json.loads(stdout) == {"schema": 1, "command": "finetune", "interrupted": True, "resume": again}
    steps = len(Journal.open(out / "journal.bz"))
    assert metrics.read_bytes().count(b"\n") == steps + 1
    done = blockzo("finetune", "--resume", "--output", out, "--steps", steps + 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == steps + 2


def wait(condition: Callable[[], bool], process: Started) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"the run ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_signal_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # a background job of a shell starts with SIGINT ignored
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            interrupts.check()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_planned_run_goes_on_as_it_would_have(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    """The planner's costs are in the journal; the rest of its state follows from the records."""
    told = arguments(tiny("llama"), rows, 24, method="auto", lr="1")
    finetune(settings(told), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    journal = Journal.open(tmp_path / "whole" / "journal.bz")
    assert len({tuple(bool(b.directions) for b in r.blocks) for r in journal.records()}) > 2
    (tmp_path / "cut" / "journal.bz").unlink()
    with Journal.create(
        tmp_path / "cut" / "journal.bz", journal.base_digest, journal.layout, journal.metadata, journal.exact
    ) as cut:
        assert journal.plan is not None
        cut.add_plan(journal.plan)
        for record in journal.records()[:11]:
            cut.append(record)
    for name in ("summary.json", "curve.png", "metrics.jsonl"):
        (tmp_path / "cut" / name).unlink()
    shutil.rmtree(tmp_path / "cut" / "model")
    resume(tmp_path / "cut", {})
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_longer_run_is_the_longer_run(tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any) -> None:
    """Stopped before its end, a run with a constant rate can be given more steps."""
    out = tmp_path / "out"

    def stop(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "finish", stop)
        finetune(settings(arguments(tiny("llama"), rows, steps=4)), out)
    resume(out, {"steps": 6})
    finetune(settings(arguments(tiny("llama"), rows, steps=6)), tmp_path / "whole")
    assert files(out)["model"] == files(tmp_path / "whole")["model"]
    with pytest.raises(UserError, match="ended after 6 steps and cannot be made longer"):
        resume(out, {"steps": 8})


def test_what_differs_is_named(whole: dict[str, Any], tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "whole"
    with pytest.raises(UserError, match="--lr was 1e-3, now 5e-3; --eps was 1e-3, now 1e-2"):
        resume(out, {"lr": "5e-3", "eps": "1e-2"})
    with pytest.raises(UserError, match="--moved was auto, now rounded"):
        resume(out, {"moved": "rounded"})
    with pytest.raises(UserError, match=r"the model .* is not the one that the run began with"):
        resume(out, {"model": str(tiny("qwen2"))})
    with pytest.raises(UserError, match=r"the train data differ .* has 59 rows .* it was .* with 60 rows"):
        resume(out, {"train": str(rows(59, "fewer.tsv"))})
    with pytest.raises(UserError, match=r"the validation data differ"):
        resume(out, {"validation": str(rows(60))})
    with pytest.raises(UserError, match="nothing to resume"):
        resume(tmp_path / "nowhere", {})
    (tmp_path / "moved.tsv").write_bytes((tmp_path / "rows.tsv").read_bytes())
    resume(out, {"train": str(tmp_path / "moved.tsv"), "lr": "0.001"})
    assert files(out) == whole
