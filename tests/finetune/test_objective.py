"""Objectives without a gradient: what they are, that a step follows them, and rewards that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo import Journal
from blockzo.finetune import Settings, finetune, resume
from blockzo.finetune.closing import won
from blockzo.finetune.errors import UserError
from blockzo.finetune.objective import Objective
from blockzo.finetune.prepare import Prepared, prepare
from blockzo.finetune.reward import load_reward, rewarded, rewards_of

Tiny = Callable[[str], Path]
Rows = Callable[..., Path]
REWARD = """
def long(prompts, answers, right):
    assert all(isinstance(one, str) for one in [*prompts, *answers])
    return [len(answer) + len(own[0]) for answer, own in zip(answers, right)]
def none(prompts, answers, right):
    return None
"""


@pytest.fixture
def questions(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"story {i}", "completion": " yes"}) + "\n" for i in range(12)))
    (tmp_path / "own.py").write_text(REWARD)
    return {"task": "sft", "train": str(path), "metrics": "f1", "max_new_tokens": 3, "holdout": 2, "batch": 3}


def made(settings: Settings) -> tuple[Prepared, Objective]:
    prepared = prepare(settings)
    return prepared, Objective(settings, prepared.scorer, prepared.train)


@torch.no_grad()
def test_a_figure_is_what_it_is_of_the_batch(tiny: Tiny, questions: Any) -> None:
    prepared, objective = made(Settings(str(tiny("llama")), **questions, objective="f1"))
    writer = prepared.scorer.writer
    assert writer is not None
    expected = 1.0 - float(writer.measured(prepared.model, prepared.train, [1, 4, 5]).mean())  # type: ignore[arg-type]
    batch = prepared.scorer.batch(prepared.train, [1, 4, 5])
    found = objective(prepared.model, batch)
    assert isinstance(found, float) and found == pytest.approx(expected) and objective.terms(batch) == 3


@torch.no_grad()
def test_accuracy_is_what_it_is_of_the_batch(tiny: Tiny, rows: Rows) -> None:
    own = {"task": "custom", "template": "{text} it was {label}.", "labels": "0=bad,1=good", "train": str(rows(20))}
    prepared, objective = made(Settings(str(tiny("llama")), **own, objective="accuracy"))
    batch = prepared.scorer.batch(prepared.train, range(8))
    right = prepared.scorer.logits(prepared.model, batch).argmax(1) == batch["labels"]
    assert float(objective(prepared.model, batch)) == pytest.approx(1 - float(right.float().mean()))


def test_a_run_by_a_reward_of_ones_own(tiny: Tiny, questions: Any, tmp_path: Path) -> None:
    told = Settings(
        str(tiny("llama")),
        **questions,
        reward=f"{tmp_path / 'own.py'}:long",
        method="rank-es",
        directions=4,
        eps="1e-1",
        lr="1e-2",
        steps=2,
    )
    result = finetune(told, tmp_path / "out")
    # what the run makes larger is what its end tells
    assert result["before"]["reward"] >= 4 and result["after"].keys() == {"rows", "loss", "perplexity", "f1", "reward"}
    assert won(result).startswith(f"reward of the written answers was {result['before']['reward']:.3f} before, ")
    losses = [record.losses for record in Journal.open(tmp_path / "out" / "journal.bz").records()]
    assert result["exact"] and len(losses) == 2 and len(losses[0]) == 4
    # answers have a letter or more, " yes" has four
    assert all(loss < -4 for step in losses for loss in step) and len(set(losses[0])) > 1
    with pytest.raises(
        UserError, match="a reward of its own, .*own.py:long, whose code would run; .*again with --reward"
    ):
        resume(tmp_path / "out", {})
    assert resume(tmp_path / "out", {"reward": told.reward})["final_digest"] == result["final_digest"]


def test_an_objective_is_measured_on_held_out_rows(tiny: Tiny, questions: Any, tmp_path: Path) -> None:
    told = Settings(str(tiny("llama")), **questions, objective="rouge_l", method="mezo", steps=1)
    result = finetune(told, tmp_path / "out")
    assert {"f1", "rouge_l"} <= result["after"].keys() and won(result).startswith("rouge_l of the written answers")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": "accuracy"}, "--objective accuracy is of tasks with classes; --task sft has none"),
        ({"objective": "bleu"}, "--objective is 'bleu'; expected one of loss, accuracy, f1"),
        ({"objective": "f1", "reward": "own.py:long"}, "--reward and --objective f1 both say"),
        ({"reward": "own.py"}, "expected FILE.py:NAME"),
        ({"reward": "gone.py:long"}, "gone.py does not exist"),
        ({"reward": "own.py:other"}, "has no 'other'; expected def other"),
        ({"reward": "own.py:none"}, "the function returned None .*expected 2 finite numbers, one a row"),
    ],
)
def test_what_is_no_objective_is_refused(
    tiny: Tiny, questions: Any, tmp_path: Path, monkeypatch: Any, options: Any, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        finetune(Settings(str(tiny("llama")), **questions, **options, steps=1), tmp_path / "out")
    if "none" not in str(options):
        assert not (tmp_path / "out").exists()


def test_written_objectives_need_written_answers(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    own = {"task": "custom", "template": "{text} it was {label}.", "labels": "0=bad,1=good", "train": str(rows(20))}
    with pytest.raises(UserError, match="--objective f1 reads written answers; --task custom has none"):
        made(Settings(str(tiny("llama")), **own, objective="f1"))


def test_code_that_does_not_run_and_numbers_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match="bad.py cannot be run .ModuleNotFoundError"):
        load_reward(f"{tmp_path / 'bad.py'}:f")
    assert rewards_of(torch.tensor([1.0, 2.0]), 2) == [1.0, 2.0]
    for found in ([1.0], [1.0, float("nan")], [1.0, "x"], 3, [1e39, 0], [10**400, 0], [1j, 0]):
        with pytest.raises(UserError, match="expected 2 "):
            rewards_of(found, 2)
    # all of these can be gone through, and give numbers that are no rewards of rows
    for found in ("12", b"12", {0: 0.5, 1: 0.25}, {1.0, 2.0}, {1: "a", 2: "b"}.keys()):
        with pytest.raises(UserError, match="the function returned .*, a (str|bytes|dict|set|dict_keys); expected 2 "):
            rewards_of(found, 2)
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserError, match="ends.py cannot be run .SystemExit"):
        load_reward(f"{tmp_path / 'ends.py'}:f")


def test_functions_that_fail_print_or_change_what_they_are_given(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "own.py").write_text(
        """print("hello")
def raises(prompts, answers, right):
    return [{}["score"] for _ in answers]
def later(prompts, answers, right):
    for _ in answers:
        yield 1.0 / 0
def ends(prompts, answers, right):
    raise SystemExit
def two(prompts, answers):
    return [0.0 for _ in answers]
def takes(prompts, answers, right):
    print("looked at", answers)
    found = [float(len(own)) for own in right]
    prompts.clear(), answers.clear(), [own.clear() for own in right], right.clear()
    return found
"""
    )
    given = ["a", "b"], ["c", "d"], [["x"], ["y", "z"]]
    for name, told in (
        ("raises", "KeyError: 'score'. at own.py, line 3"),
        ("later", "ZeroDivisionError: .* at own.py, line 6"),
        ("ends", "SystemExit: . at own.py, line 8"),
        ("two", "TypeError: two.. takes 2 positional"),
    ):
        with pytest.raises(UserError, match=f"--reward: the function failed .{told}.*; mend it. Expected def NAME"):
            rewarded(load_reward(f"{tmp_path / 'own.py'}:{name}"), *given)
    assert rewarded(load_reward(f"{tmp_path / 'own.py'}:takes"), *given) == [1.0, 2.0]
    assert given == (["a", "b"], ["c", "d"], [["x"], ["y", "z"]]), "the data of the run"
    out, err = capsys.readouterr()
    assert out == "" and "hello" in err and "looked at ['c', 'd']" in err, "stdout is for --json"
