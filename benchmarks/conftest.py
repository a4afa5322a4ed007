"""Micro-benchmarks of the operations (`benchmarks/micro`), run by pytest-benchmark:

    pytest benchmarks/ --benchmark-only

Before an operation is timed its own test runs: where its result is not the reference's, that benchmark fails and has no time.
Members of a group are timed one after the other, not in turns, so the ratios at the end tell of one run of one machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")

import pytest
import torch

Timed = Callable[..., None]
_BASES = pytest.StashKey[dict[str, float]]()
_LINES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_BASES], config.stash[_LINES] = {}, []
    # a second of each would make the whole longer than three minutes
    shorter = {"max_time": "0.2", "columns": ["min", "median", "iqr", "rounds"]}
    for name, value in shorter.items():
        option = f"--benchmark-{name.replace('_', '-')}"
        if not any(argument.startswith(option) for argument in config.invocation_params.args):
            setattr(config.option, f"benchmark_{name}", value)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    from benchmarks.harness import machine, versions

    # never a host name
    machine_info.pop("node", None)
    machine_info |= {"blockzo": versions(), "told": machine()}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash[_LINES]:
        terminalreporter.section("medians beside the group's plain operation")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One where a test does not ask for others: `@pytest.mark.parametrize("threads", [1, 2], indirect=True)`."""
    before, asked = torch.get_num_threads(), getattr(request, "param", 1)
    torch.set_num_threads(asked)
    yield asked
    torch.set_num_threads(before)


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest, threads: int) -> Timed:
    """timed(group, run, check, base=False, moved=bytes, flops=FLOPs): `check` raises where `run` would give wrong numbers; with
    `base` it is the plain operation that the others of the group are told beside.
    """

    def measure(
        group: str,
        run: Callable[[], object],
        check: Callable[[], object],
        base: bool = False,
        moved: int = 0,
        flops: int = 0,
    ) -> None:
        check()
        benchmark.group = f"{group}, {threads} thread{'s' * (threads > 1)}"
        benchmark.extra_info |= {"bytes": moved, "flops": flops, "threads": threads}
        benchmark(run)
        if benchmark.stats is None:
            return
        seconds, bases = benchmark.stats.stats.median, request.config.stash[_BASES]
        if base:
            bases[benchmark.group] = seconds
        told = {"GB/s": moved / seconds * 1e-9, "GFLOP/s": flops / seconds * 1e-9}
        if benchmark.group in bases:
            told["of the plain operation's speed"] = bases[benchmark.group] / seconds
        found = {name: round(value, 3) for name, value in told.items() if value}
        benchmark.extra_info |= found
        numbers = ", ".join(f"{value:g} {name}" for name, value in found.items())
        request.config.stash[_LINES].append(f"{benchmark.group}: {request.node.name}: {numbers}")

    return measure
