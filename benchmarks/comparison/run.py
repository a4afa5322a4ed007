"""Runs a request: units of work in processes, each run appended to the CSV when it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.comparison import methods, plan, single, store
from benchmarks.comparison.problems import TUNING_SEED, Problem, make
from benchmarks.comparison.store import Run
from blockzo.ops.backends import registry

OVERHEAD = 2.0
"""Seconds of a run over those of its plain forwards: noise, updates, scoring."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Work:
    """How a request is run. `until`: no run begins after this clock time."""

    request: plan.Request
    path: Path
    workers: int
    threads: int
    until: float | None


def carry_out(work: Work) -> list[str]:
    """Runs what is not in the CSV yet; returns what kept it from the end: failed units, or that the time was up.

    Raises:
        ValueError: the compiled kernels are not there.
        KeyboardInterrupt: stopped; runs in progress are lost, all others are in the file.
    """
    if registry.loaded("cpu") is None:
        raise ValueError(
            "blockzo's compiled kernels cannot be loaded, and seconds without them mean nothing; build them first"
        )
    store.mend(work.path)
    waiting = [
        unit for unit in plan.units(work.request) if not plan.finished(work.request, unit, store.read(work.path))
    ]
    running: dict[plan.Unit, BaseProcess] = {}
    problems: list[str] = []
    context = multiprocessing.get_context("spawn")
    try:
        while waiting or running:
            for unit in [u for u, process in running.items() if process.exitcode is not None]:
                code = running.pop(unit).exitcode
                if code != 0:
                    problems.append(f"{unit} ended with code {code}; its message is above")
            if _over(work):
                waiting = []
            ready = [u for u in waiting if not any(u.needs(other) for other in (*waiting, *running))]
            for unit in ready[: work.workers - len(running)]:
                waiting.remove(unit)
                running[unit] = context.Process(target=_process, args=(work, unit))
                running[unit].start()
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
            process.join()
    return [*problems, "the time is up"] if _over(work) else problems


def _over(work: Work) -> bool:
    return work.until is not None and time.time() >= work.until


def _process(work: Work, unit: plan.Unit) -> None:
    # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(work.threads)
    run_unit(work, unit)


def run_unit(work: Work, unit: plan.Unit) -> None:
    """All runs of a unit that are not in the CSV; other processes' runs are seen as they come."""
    request = work.request
    if unit.seed is None:
        assert unit.method is not None
        centre = plan.centre_of(request, unit.model, unit.task, unit.method, store.read(work.path))
        if centre is None:
            centre = methods.centre(unit.method, unit.model, lambda: _tuning_problem(request, unit))
        while not _over(work):
            run = plan.next_tuning(request, unit, store.read(work.path), centre)
            if run is None:
                return
            _one(work, run)
        return
    for method in request.methods:
        runs = store.read(work.path)
        lr = plan.tuned_rate(request, unit.model, unit.task, method, runs)
        if _over(work):
            return
        if lr is None:
            say(f"{method} on {unit.model} {unit.task} is passed over: its tuning did not end")
            continue
        run = plan.compare_run(request, unit, method, lr)
        if run not in runs:
            _one(work, run)


def _tuning_problem(request: plan.Request, unit: plan.Unit) -> Problem:
    return make(unit.model, unit.task, request.shots, TUNING_SEED, tuning=True)


def _one(work: Work, run: Run) -> None:
    begin = time.monotonic()
    points = single.execute(run)
    store.append(work.path, run, points, single.place(work.workers))
    first, last = points[0], points[-1]
    end = "diverged" if last.diverged else f"accuracy {first.accuracy:.3f} -> {last.accuracy:.3f}"
    loss = f"loss {first.loss:.3f} -> {last.loss:.3f}"
    say(
        f"{run.stage:7s} {run.model} {run.task} {run.method} lr {run.lr} seed {run.seed}: {end}, {loss}, "
        f"{last.spent:.0f} forwards, {time.monotonic() - begin:.0f} s"
    )


def estimate(work: Work) -> float:
    """Hours that are left at most: forwards to do, times seconds a forward as measured now, spread over the workers."""
    import torch

    torch.set_num_threads(work.threads)
    request = work.request
    todo = plan.left(request, store.read(work.path))
    seconds = 0.0
    for (model, task), forwards in todo.items():
        if forwards:
            problem = make(model, task, request.shots, request.seeds[0], tuning=False)
            each = single.plain_seconds(problem) * OVERHEAD
            say(f"{model} {task}: {forwards:.0f} forwards of {each * 1e3:.0f} ms left at most")
            seconds += forwards * each
    return seconds / work.workers / 3600


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
