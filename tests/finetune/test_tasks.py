"""Ready-made tasks against the real data files, templates and label words."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from blockzo.finetune.data.read import find_file, read_examples
from blockzo.finetune.data.tasks import TASKS, PromptTask, fields, find_task, parse_labels, render
from blockzo.finetune.errors import UserError

ROWS = {
    "sst2": (6920, 872),
    "sst5": (8544, 1101),
    "rte": (2490, 277),
    "trec": (5452, 500),
    "boolq": (3270, None),
    "cb": (250, 56),
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


def test_the_repository_carries_sst2(shared_data: Path) -> None:
    here = Path(__file__).resolve().parents[2] / "data" / "sst2"
    for name in ("train.tsv.gz", "dev_glue.tsv.gz"):
        assert gzip.open(here / name).read() == gzip.open(shared_data / "sst2" / name).read()


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
