"""The best weights by the held-out rows are named by a step, and the journal gives them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from blockzo import Journal, JournalError, digest, replay_
from blockzo.finetune import Settings, UserError, finetune, rebuild, replay
from blockzo.finetune.best import best
from blockzo.finetune.closing import closing, peak
from blockzo.finetune.models.loading import load

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]


def line(step: int, loss: float | None = None, **more: Any) -> dict[str, Any]:
    scores = {} if loss is None else {"eval_loss": loss, "eval_rows": 8, **more}
    return {"step": step, "loss": 1.0, "flops": 5, "lr": [1.0], "seconds": 2.0, **scores}


def test_the_lowest_held_out_loss_is_best_and_the_last_of_equals() -> None:
    lines = [line(0, 0.9), line(1), line(2, 0.5, accuracy=0.75), line(3), line(4, 0.5, accuracy=0.5), line(6, 0.7)]
    assert best(lines) == {"step": 4, "eval_loss": 0.5, "eval_rows": 8, "accuracy": 0.5}
    assert best([line(0, 0.3), line(5, 0.4)]) == {"step": 0, "eval_loss": 0.3, "eval_rows": 8}
    assert best([line(1)]) is None


def test_nothing_is_said_where_the_last_step_is_the_best() -> None:
    found: dict[str, Any] = {"steps": 6, "best": {"step": 6, "eval_loss": 0.5, "eval_rows": 8}}
    assert peak(found) == [] and peak({"steps": 6}) == []
    found |= {"settings": {"model": "m"}, "files": {"journal": "j.bz"}}
    found["best"]["step"] = 0
    (told,) = peak(found)
    assert "before training" in told and told.endswith("    blockzo replay m j.bz best --steps 0")


@pytest.fixture
def run(tiny: Tiny, rows: Rows, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A rate so high that the last step is not the best."""
    told = Settings(
        str(tiny("llama")),
        "custom",
        str(rows(40)),
        str(rows(16, "held.tsv")),
        template="{text} it was {label}.",
        labels="0=bad,1=good",
        method="mezo",
        lr="1e-2",
        steps=5,
        eval_every=1,
    )
    return finetune(told, tmp_path / "out"), tmp_path / "out"


def test_the_weights_of_any_step_come_from_the_journal(run: Any, tiny: Tiny, tmp_path: Path) -> None:
    result, out = run
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert result["best"]["eval_loss"] == min(found["eval_loss"] for found in lines)
    assert (peak(result) == []) == (result["best"]["step"] == 5)
    assert all(text in closing(result, lines) for text in peak(result))
    base, journal = load(str(tiny("llama")), "float32").model, Journal.open(out / "journal.bz")
    for step in range(6):
        found = replay(str(tiny("llama")), out / "journal.bz", tmp_path / str(step), steps=step)
        assert found["steps"] == step and found["verified"]
        assert digest(load(str(tmp_path / str(step)), "float32").model) == found["digest"] == digest(base)
        replay_(base, journal.records()[step : step + 1], journal.layout)
    last, kept = (load_file(folder / "model.safetensors") for folder in (tmp_path / "5", out / "model"))
    assert all((last[name] == kept[name]).all() for name in kept)


@pytest.mark.parametrize("steps", [-1, 6])
def test_steps_that_the_journal_does_not_hold(run: Any, tiny: Tiny, tmp_path: Path, steps: int) -> None:
    with pytest.raises(UserError, match=f"--steps is {steps}, but .* holds 5 steps; expected 0 to 5"):
        replay(str(tiny("llama")), run[1] / "journal.bz", tmp_path / "again", steps=steps)
    assert not (tmp_path / "again").exists()


def test_weights_that_do_not_lead_to_the_journals_end_do_not_appear(
    run: Any, tiny: Tiny, tmp_path: Path, monkeypatch: Any
) -> None:
    done: list[int] = []

    def wrong(params: Any, records: Any, layout: Any) -> None:
        # the steps after the ones asked for lose one
        replay_(params, records[len(done) :], layout)
        done.append(len(records))

    monkeypatch.setattr(rebuild, "replay_", wrong)
    with pytest.raises(JournalError, match="Nothing was written"):
        replay(str(tiny("llama")), run[1] / "journal.bz", tmp_path / "again", steps=2)
    assert done == [2, 3] and not (tmp_path / "again").exists()
