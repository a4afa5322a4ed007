"""pytest plugin: the fast selection, tests apart from others, long files first for workers, and the record they are chosen by.

`tests/durations.json` holds, for each test function that takes a while, CPU seconds of its dearest case, with the fixtures that
it shares, and of all its cases; processes that were waited for count. A wait costs nothing: a busy machine records the same.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

WORTH_RECORDING = 0.2
FAST = 0.6
"""Most seconds of a test function's dearest case in the fast selection."""

NEVER_FAST = ("apart", "heavy", "slow")
PROPERTY = "cpu seconds alone, and with what was shared paid once"
_ALONE, _PAID = pytest.StashKey[float](), pytest.StashKey[float]()
_shared: dict[str, float] = {}
_found: dict[str, list[float]] = {}

Record = dict[str, list[float]]
"""Name of a function -> seconds of the dearest of its cases, and of all of them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="of each test function that is short, one case")
    parser.addoption("--apart", choices=("only", "without"), help="tests marked apart: only them, or all but them")
    parser.addoption("--record-durations", action="store_true", help="update tests/durations.json by this run")


def pytest_configure(config: pytest.Config) -> None:
    # a script lets what it starts in the background ignore Ctrl-C
    if not hasattr(config, "workerinput") and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # to import every file for the few tests that are apart would take longer than most of them
    if config.getoption("--apart") != "only" or not collection_path.name.startswith("test_"):
        return None
    return True if collection_path.is_file() and "apart" not in collection_path.read_text(encoding="utf-8") else None


def record_file(config: pytest.Config) -> Path:
    return config.rootpath / "tests" / "durations.json"


def recorded(file: Path) -> Record:
    found: Record = json.loads(file.read_text()) if file.is_file() else {}
    return found


def function_of(nodeid: str) -> str:
    return nodeid.split("[", 1)[0]


def file_of(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


def is_fast(nodeid: str, record: Record) -> bool:
    return record.get(function_of(nodeid), [0.0])[0] <= FAST


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    record = recorded(record_file(config))
    kept = items[:]
    if apart := config.getoption("--apart"):
        kept = [item for item in kept if (item.get_closest_marker("apart") is not None) is (apart == "only")]
    if config.getoption("--fast"):
        # of several cases the first
        first = {function_of(i.nodeid): i for i in reversed(kept) if not any(map(i.get_closest_marker, NEVER_FAST))}
        kept = [item for item in first.values() if is_fast(item.nodeid, record)]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]
    if hasattr(config, "workerinput"):
        seconds: dict[str, float] = {}
        for function, (_, every) in record.items():
            seconds[file_of(function)] = seconds.get(file_of(function), 0.0) + every
        # a long file that comes last leaves the other workers idle; one without a record may be long
        items.sort(key=lambda item: -seconds.get(file_of(item.nodeid), math.inf))


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # those that are forked from another process are not this one's children
    warm = getattr(sys.modules.get("tests.warm"), "spent", 0.0)
    return warm + sum(usage.ru_utime + usage.ru_stime for usage in used)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    began = cpu_seconds()
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            _shared[fixturedef.argname] = cpu_seconds() - began


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    known, began = set(_shared), cpu_seconds()
    yield
    item.stash[_PAID] = cpu_seconds() - began
    names = set(getattr(item, "fixturenames", ())) & known
    # who comes first pays for what is shared; every one needs it
    item.stash[_ALONE] = item.stash[_PAID] + sum(_shared[name] for name in names)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    began = cpu_seconds()
    yield
    used = cpu_seconds() - began
    item.user_properties.append((PROPERTY, (item.stash[_ALONE] + used, item.stash[_PAID] + used)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for alone, paid in [value for name, value in report.user_properties if name == PROPERTY]:
            found = _found.setdefault(function_of(report.nodeid), [0.0, 0.0])
            found[:] = max(found[0], alone), found[1] + paid


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        file = record_file(config)
        found = {name: [round(value, 1) for value in values] for name, values in _found.items()}
        merged = {**recorded(file), **found}
        kept = {
            name: values
            for name, values in sorted(merged.items())
            if max(values) >= WORTH_RECORDING and (config.rootpath / file_of(name)).is_file()
        }
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in kept.items())
        file.write_text(f"{{\n{lines}\n}}\n")
