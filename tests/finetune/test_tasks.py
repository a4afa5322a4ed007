"""Ready-made tasks against the real data files, templates and label words."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blockzo.finetune import Settings, evaluate, finetune, resume
from blockzo.finetune.data.read import find_file, read_examples
from blockzo.finetune.data.task import PromptTask
from blockzo.finetune.data.tasks import OTHERS, TASKS, find_task, parse_labels, register_task
from blockzo.finetune.data.templates import fields, render
from blockzo.finetune.errors import UserError
from blockzo.finetune.metrics import FIGURES
from blockzo.finetune.option import options_of

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]

ROWS = {
    "sst2": (6920, 872),
    "sst5": (8544, 1101),
    "rte": (2490, 277),
    "trec": (5452, 500),
    "boolq": (3270, None),
    "cb": (250, 56),
    "wic": (5428, 500),
    "wsc": (554, 104),
    "agnews": (9991, 7600),
}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_ready_made_tasks_read_their_files(name: str, shared_data: Path) -> None:
    task = TASKS[name]
    for file, count in zip((task.train, task.validation), ROWS[name], strict=True):
        if file is not None:
            examples = read_examples(find_file(file, name, shared_data), task)
            assert len(examples) == count
            assert {example.label for example in examples} == set(range(len(task.words)))
            for masked in (False, True):
                before, after = task.parts(masked)
                text = render(before, examples[0].columns) + "WORD" + render(after, examples[0].columns)
                assert "{" not in text and text.count("WORD") == 1


@pytest.mark.parametrize(
    ("task", "names"), [("sst2", ("train.tsv.gz", "dev_glue.tsv.gz")), ("trec", ("train.tsv.gz", "test.tsv.gz"))]
)
def test_the_repository_carries_two_tasks(shared_data: Path, task: str, names: tuple[str, ...]) -> None:
    here = Path(__file__).resolve().parents[2] / "data" / task
    for name in names:
        assert gzip.open(here / name).read() == gzip.open(shared_data / task / name).read()


def test_causal_models_read_up_to_the_label_word() -> None:
    task = find_task("custom", "{text} It was {label}.", "0=bad,1=good")
    assert task.parts(masked=False) == ("{text} It was ", ".")
    assert find_task("custom", "{text} It was", "0=bad,1=good").parts(masked=True) == ("{text} It was ", ".")
    assert find_task("custom", "{text}\\n{mask}", "0=bad,1=good").parts(masked=False) == ("{text}\n", "")


def test_a_tasks_template_and_words_can_be_replaced() -> None:
    task = find_task("sst2", None, "0=bad,1=good")
    assert task.template == TASKS["sst2"].template and dict(task.words) == {"0": "bad", "1": "good"}
    other = find_task("rte", "{premise} {hypothesis} {label}", None)
    assert other.masked_template is None and dict(other.words) == dict(TASKS["rte"].words)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("no column {label}", "reads no column"),
        ("{text} {label} {mask}", "more than once"),
        ("{text", "expected text like"),
        ("{} {label}", "name of a column in braces"),
        ("{text} } {label}", "for a brace"),
    ],
)
def test_templates_that_cannot_work(template: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        fields(template)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("0terrible", "LABEL=WORD"),
        ("0=a,0=b", "twice"),
        ("0=,1=b", "LABEL=WORD"),
        ("0=a", "two or more"),
        ("", "LABEL=WORD"),
    ],
)
def test_labels_that_cannot_work(labels: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        PromptTask("custom", "{text} {label}", parse_labels(labels))


def test_unknown_tasks() -> None:
    with pytest.raises(UserError, match="sst2, sst5"):
        find_task("sst3")
    with pytest.raises(UserError, match="needs --template and --labels"):
        find_task("custom", template="{text} {label}")


@pytest.fixture
def own(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> PromptTask:
    """A task of a user's, registered for the length of a test."""
    monkeypatch.setattr("blockzo.finetune.data.tasks.TASKS", dict(TASKS))
    train, held = rows(40), rows(16, "held.tsv")
    return register_task(
        PromptTask(
            "mood",
            "{text} it was {label}.",
            {"0": "bad", "1": "good"},
            train=str(train),
            validation=str(held),
            metrics=("macro_f1",),
        )
    )


def test_a_task_of_ones_own_runs_by_its_name(own: PromptTask, tiny: Tiny, tmp_path: Path) -> None:
    settings = Settings(str(tiny("llama")), task="mood", steps=2, batch=4, lr="1e-3")
    result = finetune(settings, tmp_path / "out")
    assert result["task"] == "mood" and result["before"]["rows"] == 16
    assert 0 <= result["before"]["macro_f1"] <= 1 and "macro_f1" in result["after"]
    again = resume(tmp_path / "out", {})
    assert again["after"] == result["after"] and again["before"] == result["before"]
    scored = evaluate(Settings(str(tmp_path / "out" / "model"), task="mood"))
    assert scored["scores"] == result["after"]


def test_names_of_tasks(own: PromptTask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mood", "sst2", *OTHERS):
        with pytest.raises(UserError, match=f"there is a task '{name}' already"):
            register_task(replace(own, name=name))
    for name in ("", "a task", "../up"):
        with pytest.raises(UserError, match="expected letters, digits"):
            register_task(replace(own, name=name))
    with pytest.raises(UserError, match=r"has to be registered first \(blockzo.finetune.register_task\)"):
        find_task("yours")


def test_every_task_is_an_option_and_asks_for_metrics_that_are_there() -> None:
    told = options_of(Settings)["task"].help
    for task in TASKS.values():
        assert task.name in told and set(task.metrics) <= set(FIGURES)


def test_a_metric_that_is_not_there(own: PromptTask, tiny: Tiny, tmp_path: Path) -> None:
    register_task(replace(own, name="other", metrics=("rouge",)))
    with pytest.raises(UserError, match="the metric 'rouge'; expected one of macro_f1"):
        evaluate(Settings(str(tiny("llama")), task="other"))
