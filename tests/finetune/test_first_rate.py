"""A run that was told no learning rate: measured before it begins, held by the journal, not asked again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockzo import Journal
from blockzo.finetune import Settings, finetune, first_rate, resume
from blockzo.finetune.settings import UNMEASURED

Tiny = Callable[[str], Path]


@pytest.fixture
def told(tiny: Tiny, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "rows.tsv"
    lines = [f"the film was {word}\t{label}" for label, word in enumerate(("terrible", "great")) for _ in range(8)]
    data.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return {
        "model": str(tiny("llama")),
        "task": "sst2",
        "train": str(data),
        "validation": str(data),
        "batch": 4,
        "steps": 3,
    }


def rate_of(folder: Path) -> str:
    found: str = Journal.open(folder / "journal.bz").metadata["settings"]["lr"]
    return found


@pytest.mark.parametrize(
    "method", [{"method": "mezo"}, {"method": "fzoo"}, {"method": "spzo", "inner": 2, "split": "0.5"}]
)
def test_the_rate_is_measured_once_and_in_the_journal(
    told: dict[str, Any], method: dict[str, Any], tmp_path: Path
) -> None:
    first = finetune(Settings(**told, **method), tmp_path / "one")
    rate = rate_of(tmp_path / "one")
    assert 0.0 < float(rate) < 10.0 and rate != UNMEASURED
    # as if it had been given
    given = finetune(Settings(**told, **method, lr=rate), tmp_path / "two")
    assert given["final_digest"] == first["final_digest"] != first["base_digest"]


def test_a_resumed_run_keeps_it(told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finetune(Settings(**told, method="mezo"), tmp_path / "whole")
    asked = []
    monkeypatch.setattr(first_rate, "suggest_lr", lambda *given: asked.append(given) or 1.0)

    class Stopped(Exception):
        pass

    from blockzo.finetune.loop import Training

    step = Training._step

    def once(self: Training, batch: Any, number: int) -> Any:
        if number == 2:
            raise Stopped
        return step(self, batch, number)

    rate = rate_of(tmp_path / "whole")
    monkeypatch.setattr(Training, "_step", once)
    with pytest.raises(Stopped):
        finetune(Settings(**told, method="mezo", lr=rate), tmp_path / "half")
    monkeypatch.setattr(Training, "_step", step)
    assert resume(tmp_path / "half", {})["final_digest"] == whole["final_digest"]
    assert not asked


def test_figures_that_are_not_smooth_have_the_old_rate(told: dict[str, Any], tmp_path: Path) -> None:
    finetune(Settings(**told, method="mezo", objective="accuracy"), tmp_path / "out")
    assert rate_of(tmp_path / "out") == UNMEASURED
    assert Settings(**told, method="auto").lr == "1" and Settings(**told, method="mezo").lr is None
