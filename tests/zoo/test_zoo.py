"""What users bring: losses of a step equal those of copies with materialised noise, and the update is `update_`'s, bit for bit.

Anything else is refused in words, and where that is expected stands in `cases.REFUSED`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from tests.zoo import cases
from tests.zoo.architectures import ARCHITECTURES

# the rest is in the long form; a minute of one core is enough for each run
SHORT = [name for name in cases.CASES if not name.startswith("bert_classifier+")]
NUMBERS = {name: number for number, name in enumerate(cases.CASES)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def look(case: cases.Case, found: Iterable[cases.Combination], record: Callable[[str, Any], None]) -> None:
    trial = cases.Trial(case)
    counts: Counter[str] = Counter()
    failed = []
    for combination in found:
        verdict = trial(combination)
        counts[verdict.kind] += 1
        expected = cases.REFUSED.get(case.name)
        refused = verdict.kind == "refused" and expected is not None and re.search(expected, verdict.text)
        if verdict.kind != "right" and not refused:
            failed.append(f"{verdict.kind}: {combination}: {verdict.text}")
    record("zoo", dict(counts))
    assert not failed, "\n".join(failed)


def test_the_zoo_is_large_enough() -> None:
    assert len(ARCHITECTURES) >= 90 and len(cases.CASES) >= 180
    assert set(cases.REFUSED) <= set(cases.CASES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHORT)
def test_one_combination(name: str, record_property: Callable[[str, Any], None]) -> None:
    """Each case at one cut with one method, in turn."""
    case = cases.CASES[name]
    look(case, cases.combinations(case, only=NUMBERS[name]), record_property)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", cases.CASES)
def test_every_combination(name: str, record_property: Callable[[str, Any], None]) -> None:
    """Each case at every cut with every method; the summary of the run gives the count."""
    case = cases.CASES[name]
    look(case, cases.combinations(case), record_property)
