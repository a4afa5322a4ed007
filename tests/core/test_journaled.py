"""A journal that is gone on with: from its base, from a checkpoint's weights, and after it was cut."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import blockzo as bz
from tests.core import zoo

STEPS = 6


def train(model: Any, first: int, last: int, **options: Any) -> bz.ZO:
    zo = optimiser(model, **options)
    zo.step_number = first
    for step in range(first, last):
        zo.step(zoo.batch(seed=step))
    return zo


def optimiser(model: Any, method: Any = "mezo", cut: Any = (), **options: Any) -> bz.ZO:
    return bz.ZO(model, None, method, bz.Blocks(model, list(cut)), lr=1e-2, seed=4, **options)


@pytest.mark.parametrize("method", ["mezo", "auto"])
@pytest.mark.parametrize("at", [0, 3, STEPS])
def test_a_checkpoint_goes_on_to_the_same_file(method: str, at: int, tmp_path: Path) -> None:
    cut = [1, 2] if method == "auto" else []
    # a fixed cost of blocks, as the planner would measure other ones in each run
    chosen: Any = bz.Auto(costs=(1.0, 2.0, 1.0)) if method == "auto" else method
    model, saved = zoo.make("gpt2"), None
    with bz.Journal.create(tmp_path / "j", bz.digest(model), bz.Blocks(model, cut).layout) as journal:
        zo = optimiser(model, chosen, cut)
        zo.attach(journal)
        for step in range(STEPS + 1):
            if step == at:
                saved = copy.deepcopy(model)
                if step:
                    journal.add_digest(bz.digest(model))
            if step < STEPS:
                zo.step(zoo.batch(seed=step))
        journal.finish(bz.digest(model))
    whole, digest = (tmp_path / "j").read_bytes(), bz.digest(model)
    with bz.Journal.resume(tmp_path / "j") as journal:
        again = optimiser(saved, chosen, cut)
        if at < STEPS:
            with pytest.raises(bz.JournalError, match=rf"truncate\({at}\)"):
                again.attach(journal, at)
        journal.truncate(at)
        assert (len(journal), journal.finished, journal.final_digest) == (at, False, None)
        again.attach(journal, at)
        assert again.step_number == at
        for step in range(at, STEPS):
            again.step(zoo.batch(seed=step))
        assert bz.digest(saved) == digest
        journal.finish(digest)
        journal.verify()
    assert (tmp_path / "j").read_bytes() == whole


def test_other_weights_and_places_are_refused(tmp_path: Path) -> None:
    model = zoo.make("gpt2")
    with bz.Journal.create(tmp_path / "j", bz.digest(model), bz.Blocks(model, []).layout) as journal:
        zo = optimiser(model, journal=journal)
        for step in range(3):
            zo.step(zoo.batch(seed=step))
            journal.add_digest(bz.digest(model))
        journal.truncate(2)
        with pytest.raises(bz.JournalError, match="ends at weights"):
            optimiser(zoo.make("gpt2")).attach(journal, 2)
        journal.truncate(0)
        with pytest.raises(bz.JournalError, match="begins at weights"):
            optimiser(model).attach(journal, 0)
        with pytest.raises(bz.JournalError, match="cut at 0 to 0"):
            journal.truncate(1)
        assert len(bz.Journal.open(tmp_path / "j")) == 0
    with pytest.raises(bz.JournalError, match="reading"):
        bz.Journal.open(tmp_path / "j").truncate(0)


def test_commit_takes_a_result_or_its_record_and_the_journal_first(tmp_path: Path) -> None:
    models = [zoo.make("gpt2") for _ in range(3)]
    zos = [optimiser(model) for model in models]
    zos[0].step(zoo.batch())
    result = zos[1].estimate(zoo.batch())
    zos[1].commit(result)
    zos[2].apply(result.record)
    assert len({bz.digest(model) for model in models}) == 1
    with bz.Journal.create(tmp_path / "j", layout=zos[1].layout, start=1) as journal:
        zos[1].attach(journal)
        assert zos[1].step_number == 1
        zos[1].commit(zos[1].estimate(zoo.batch(seed=1)))
        assert [record.step for record in journal.records()] == [1]
        journal.finish(bz.digest(models[1]))
        before = bz.digest(models[1])
        with pytest.raises(bz.JournalError, match="finished"):
            zos[1].step(zoo.batch(seed=2))
        assert bz.digest(models[1]) == before and zos[1].step_number == 2
