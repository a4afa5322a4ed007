"""Runs that go on: the bits of one that was not stopped, or words; and no journal is lost."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import blockzo as bz
from blockzo.integrations.checkpoints import lacks
from tests.core import zoo
from tests.integrations.trained import Stop, rows, trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Digest of a whole run of 6 steps, and the folder of one that was stopped after 5."""
    folder = tmp_path_factory.mktemp("runs")
    whole = trainer(folder / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(folder / "stopped", callbacks=[Stop(5)]).train()
    return bz.digest(whole.model), folder / "stopped"


@pytest.fixture
def stopped(runs: tuple[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[1], tmp_path / "run"))


def gone_on(folder: Path, checkpoint: Any = True, data: Any = None, **given: Any) -> str:
    run = trainer(folder, **given)
    run.train_dataset = data or run.train_dataset
    run.train(resume_from_checkpoint=checkpoint)
    journal = bz.Journal.open(folder / "journal.bz")
    rebuilt = zoo.make("llama")
    bz.replay_(rebuilt, journal.records(), journal.layout)
    assert bz.digest(rebuilt) == bz.digest(run.model) == journal.final_digest
    return bz.digest(run.model)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"seed": 4}, "seed=3; found seed=4"),
        ({"method": "fzoo"}, "method=.*MeZO.*; found method=.*FZOO"),
        ({"eps": 1e-3, "distribution": "gaussian"}, "eps=0.01, distribution='rademacher'; found eps=0.001"),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, "rows=4, accumulated=1; found rows=2"),
        ({"learning_rate": 1e-3}, "learning_rate=0.01; found learning_rate=0.001"),
        (
            {"lr_scheduler_type": "cosine", "warmup_steps": 2},
            "schedule='linear', warmup_steps=0; found schedule='cosine'",
        ),
        ({"weight_decay": 0.1}, "weight_decay=0.0; found weight_decay=0.1"),
        ({"data": rows(16)}, "rows of train_dataset=24; found rows of train_dataset=16"),
        ({"train_sampling_strategy": "sequential"}, "='random'; found .*='sequential'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_another_run_is_no_continuation(given: dict[str, Any], text: str, stopped: Path) -> None:
    before = (stopped / "journal.bz").read_bytes()
    with pytest.raises(bz.JournalError, match=text):
        gone_on(stopped, **given)
    assert (stopped / "journal.bz").read_bytes() == before


def test_more_steps_are_said_where_rates_depend_on_them(stopped: Path) -> None:
    with pytest.warns(UserWarning, match="was to have 6 steps, now 7: rates of the linear schedule"):
        gone_on(stopped, max_steps=7)


def test_other_rows_are_said(stopped: Path) -> None:
    with pytest.warns(UserWarning, match="step 4 was done before the run was stopped, with other losses"):
        gone_on(stopped, data=rows()[::-1])


@pytest.mark.parametrize("given", [{"max_steps": 4}, {"max_steps": 6}], ids=["within an epoch", "at its end"])
def test_a_run_that_was_over_does_no_further_step(given: dict[str, Any], tmp_path: Path) -> None:
    given |= {"lr_scheduler_type": "constant", "save_steps": 2}
    run = trainer(tmp_path, **given)
    run.train()
    assert gone_on(tmp_path, **given) == bz.digest(run.model)
    assert len(bz.Journal.open(tmp_path / "journal.bz")) == given["max_steps"]


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def lost(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names][0]


STOPPED_SAVES: dict[str, tuple[Callable[[Path], None], str]] = {
    "before its last file": (lost("trainer_state.json"), "no trainer_state.json, which is written last"),
    "in its weights already": (lost("zo.json", "trainer_state.json", "rng_state.pth"), "its save was stopped"),
    "in the state": (cut("trainer_state.json"), "trainer_state.json is damaged"),
    "in the weights": (cut("model.safetensors"), "model.safetensors is damaged"),
    "in the schedule": (cut("scheduler.pt"), "scheduler.pt is damaged"),
    "in the generators": (cut("rng_state.pth"), "rng_state.pth is damaged"),
    "without rates": (lost("optimizer.pt", "scheduler.pt"), "save_only_model=True leaves them out"),
    "of a gradient trainer": (lost("zo.json", "journal.bz"), "no zeroth-order Trainer saved it"),
}


@pytest.mark.parametrize("name", STOPPED_SAVES)
def test_a_checkpoint_that_is_not_whole_is_passed_over(name: str, stopped: Path, runs: tuple[str, Path]) -> None:
    change, text = STOPPED_SAVES[name]
    change(stopped / "checkpoint-4")
    with pytest.raises(bz.JournalError, match=f"checkpoint-4 cannot be gone on from: .*{text}"):
        gone_on(stopped, str(stopped / "checkpoint-4"))
    with pytest.warns(UserWarning, match=f"going on from .*checkpoint-2; checkpoint-4: .*{text}"):
        assert gone_on(stopped) == runs[0]


def test_other_weights_in_a_checkpoint_are_refused_without_a_journal_too(tmp_path: Path) -> None:
    trainer(tmp_path, journal=None, max_steps=4).train()
    shutil.copy(tmp_path / "checkpoint-2/model.safetensors", tmp_path / "checkpoint-4/model.safetensors")
    with pytest.raises(bz.JournalError, match="checkpoint-4 was saved with weights bz1-.*, this model has bz1-"):
        trainer(tmp_path, journal=None, max_steps=4).train(resume_from_checkpoint=True)


def test_a_run_stopped_before_its_first_checkpoint_says_what_to_do(stopped: Path) -> None:
    for folder in stopped.glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(bz.JournalError, match="no checkpoint to go on from. Remove the journal .* and train anew"):
        gone_on(stopped)


@pytest.mark.parametrize("steps", [2, 5])
def test_the_journal_of_another_run_stays(steps: int, stopped: Path, tmp_path: Path) -> None:
    """It has no digest after step 4 to be told apart by, or ends before it."""
    trainer(tmp_path / "other", max_steps=steps, seed=9, save_strategy="no").train()
    before = (tmp_path / "other/journal.bz").read_bytes()
    with pytest.raises(
        bz.JournalError, match="is of another run than the checkpoint .*checkpoint-4: their steps differ"
    ):
        gone_on(tmp_path / "other", str(stopped / "checkpoint-4"))
    run = trainer(tmp_path / "other", max_steps=1, journal="second.bz", save_strategy="no")
    run.train()
    with pytest.raises(
        bz.JournalError, match=f"is the journal of another run, of {steps} steps; save in another folder"
    ):
        run.save_model()
    run.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "other/journal.bz").read_bytes() == before
    assert not (tmp_path / "other/model.safetensors").exists()


def test_a_journal_cut_anywhere_is_completed_by_its_copy(stopped: Path, runs: tuple[str, Path]) -> None:
    whole, shorter = (stopped / "journal.bz").read_bytes(), (stopped / "checkpoint-2/journal.bz").stat().st_size
    (stopped / "journal.bz").write_bytes(whole[: shorter + 11])
    assert gone_on(stopped) == runs[0]
    (stopped / "journal.bz").write_bytes(whole[:20])
    with pytest.raises(bz.JournalError, match="Move it away: a checkpoint that has a copy"):
        gone_on(stopped)


def test_training_once_more_is_gone_on_with_from_its_own_checkpoint(tmp_path: Path) -> None:
    """It numbers checkpoints from 0 again, so that the highest number is of the first training."""
    found = []
    for name, stop in (("whole", 99), ("stopped", 3)):
        run = trainer(tmp_path / name, max_steps=4)
        run.train()
        run.add_callback(Stop(stop))
        if stop == 3:
            with pytest.raises(KeyboardInterrupt):
                run.train()
            run = trainer(tmp_path / name, max_steps=4)
            run.train(resume_from_checkpoint=True)
        else:
            run.train()
        found.append((bz.digest(run.model), len(bz.Journal.open(tmp_path / name / "journal.bz"))))
    assert found[0] == found[1] and found[0][1] == 8


def test_weights_that_were_written_between_trainings_need_another_journal(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1, save_strategy="no")
    run.train()
    with torch.no_grad():
        next(run.model.parameters()).add_(1)
    with pytest.raises(bz.JournalError, match="not those that the last train.. left, .* pass another journal="):
        run.train()
    run.args.journal = "second.bz"
    run.train()
    journal = bz.Journal.open(tmp_path / "second.bz")
    assert len(journal) == 1 and journal.final_digest == bz.digest(run.model)


def test_a_full_disk_leaves_nothing_that_loads(
    stopped: Path, runs: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file the disk is full at."""
    real_save, real_text = torch.save, Path.write_text

    def full(path: Any) -> None:
        Path(path).write_bytes(b"{")
        raise OSError(28, "No space left on device")

    def at(name: str, write: Callable[..., Any], place: int) -> Callable[..., Any]:
        return lambda *given, **more: full(given[place]) if Path(given[place]).name == name else write(*given, **more)

    for name in ("model.safetensors", "zo.json.part", "optimizer.pt", "trainer_state.json"):
        run = trainer(stopped)
        with monkeypatch.context() as patched:
            patched.setattr("torch.save", at(name, real_save, 1))
            patched.setattr(Path, "write_text", at(name, real_text, 0))
            if name == "model.safetensors":
                patched.setattr(
                    type(run.model), "save_pretrained", lambda _, to, **more: full(Path(to, "model.safetensors"))
                )
            if name == "trainer_state.json":
                patched.setattr("transformers.TrainerState.save_to_json", lambda _, path: full(path))
            with pytest.raises(OSError, match="No space left"):
                run.train(resume_from_checkpoint=str(stopped / "checkpoint-4"))
        assert not list(stopped.rglob("*.part"))
        assert lacks(stopped / "checkpoint-6")
    with pytest.warns(UserWarning, match="going on from .*checkpoint-4; checkpoint-6: trainer_state.json is damaged"):
        assert gone_on(stopped) == runs[0]


@pytest.mark.parametrize(
    "given", [{"train_sampling_strategy": "group_by_length"}, {"accelerator_config": {"use_seedable_sampler": False}}]
)
def test_an_epoch_has_the_rows_it_had_whatever_draws_them(given: dict[str, Any], tmp_path: Path) -> None:
    """These samplers draw from torch's generator, in the middle of which a checkpoint's state is of no use."""
    given |= {
        "max_steps": 9,
        "save_steps": 4,
        "train_sampling_strategy": given.get("train_sampling_strategy", "random"),
    }
    whole = trainer(tmp_path / "whole", **given)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", callbacks=[Stop(9)], **given).train()
    assert json.loads((tmp_path / "run/checkpoint-8/trainer_state.json").read_text())["epoch"] > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert gone_on(tmp_path / "run", **given) == bz.digest(whole.model)


class Rows(torch.utils.data.IterableDataset[Any]):
    """Without a length: ends after 10 rows."""

    def __iter__(self) -> Iterator[Any]:
        return iter(rows(10))


def test_a_later_pass_over_data_without_a_length_is_not_found_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        begun = trainer(tmp_path, callbacks=[Stop(5)])
        begun.train_dataset = Rows()
        begun.train()
    with pytest.raises(bz.JournalError, match="checkpoint-4 lies in pass 2 over a train_dataset without a length"):
        gone_on(tmp_path, data=Rows())
    gone_on(tmp_path, str(tmp_path / "checkpoint-2"), data=Rows())
    with pytest.warns(UserWarning, match="other losses"):
        gone_on(tmp_path, str(tmp_path / "checkpoint-4"), data=Rows(), ignore_data_skip=True)
