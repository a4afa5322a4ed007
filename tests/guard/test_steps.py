"""Steps, operations and launches do no more than is recorded; and the guard fails on one that does."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest

import blockzo as bz
from blockzo.ops.backends import cpu
from tests.guard import steps
from tests.guard.__main__ import in_process
from tests.guard.figures import differences, holds

Counts = dict[str, float]


# starts torch in a process
@pytest.mark.heavy
def test_steps_do_no_more_than_is_recorded() -> None:
    holds(*in_process("steps"))


def told(found: Counts, recorded: Counts) -> list[str]:
    lines = differences({"case": found}, {"case": recorded})
    assert all("WORSE" in line for line in lines), lines
    return lines


@pytest.fixture(autouse=True)
def one_thread():
    with steps.one_thread():
        yield


def test_one_more_pass_is_found() -> None:
    (model, _), noise = steps.made(), bz.Noise(1)

    def halves() -> None:
        for first in (0, 8):
            bz.update_(model, noise, [1e-4] * 8, range(first, first + 8))

    once = steps.counts(model, lambda: bz.update_(model, noise, [1e-4] * 16))
    lines = told(steps.counts(model, halves), once)
    assert [line.split()[1:3] for line in lines[:2]] == [["2.0", "weight"]] * 2


def test_one_more_allocation_is_found() -> None:
    plain, calls = cpu.perturbed_linear, []

    def copies(x, weight, *others, **options):
        # in one layer of one evaluation
        calls.append(weight)
        return plain(x, weight.clone() if len(calls) == 3 else weight, *others, **options)

    model, ids = steps.made()
    run = partial(bz.perturbed_losses, model, bz.Noise(3), [0], [1e-3], lambda: steps.loss(model, ids))
    run()
    recorded = steps.asked(run)
    with mock.patch.object(cpu, "perturbed_linear", copies):
        lines = told(steps.asked(run), recorded)
    assert any(f"{recorded['allocations'] + 1:,} allocations" in line for line in lines), lines


def test_one_more_launch_is_found() -> None:
    (model, _), noise = steps.made(), bz.Noise(1)
    launches: list[str] = []
    counted = []
    with steps.without_launches(lambda name, grid: launches.append(name)):
        for scales in ([1e-3], [5e-4, 5e-4]):
            launches.clear()
            for scale in scales:
                bz.perturb_(model, noise, scale)
            counted.append({f"launches of {name}": float(launches.count(name)) for name in launches})
    assert len(told(counted[1], counted[0])) == 1
