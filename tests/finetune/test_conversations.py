"""Rows that would be trained on as something else than they are: read as they are meant, or refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockzo.finetune.data.completion_task import CompletionTask
from blockzo.finetune.data.read import read_examples
from blockzo.finetune.data.rows import blank
from blockzo.finetune.data.tasks import find_task
from blockzo.finetune.data.written import WrittenExample, read_written
from blockzo.finetune.errors import UserError
from blockzo.finetune.settings import Settings
from blockzo.finetune.sources import read_task, task_of

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(folder: Path, *rows: Any, template: str | None = None) -> list[WrittenExample]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_written(path, CompletionTask("sft", template), {})


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [USER, CALL, ANSWER]}, "line 1: message 2 of 'messages' has 'tool_calls', and --task sft"),
        ({"messages": [USER, {**CALL, "content": None}]}, "has 'tool_calls'"),
        ({"messages": [USER, {**ANSWER, "reasoning_content": "so"}]}, "has 'reasoning_content'"),
        ({"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]}, "has 'function_call'"),
        ({"messages": [{**USER, "images": ["x.png"]}, ANSWER]}, "message 1 of 'messages' has 'images'"),
        ({"tools": [{"name": "f"}], "messages": [USER, ANSWER]}, "'tools' beside 'messages'"),
        ({"messages": [USER, {**ANSWER, "content": ""}]}, "message 2 of 'messages' is an answer without text"),
        ({"messages": [USER, {**ANSWER, "content": " \u200b\n"}, USER, ANSWER]}, "is an answer without text"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no message of the role 'assistant' to train on"),
        (
            {"messages": [USER, {**ANSWER, "weight": 0.5}]},
            "message 2 of 'messages' has the weight 0.5; expected 1, or 0",
        ),
        ({"instruction": "p", "input": "of this", "output": "c"}, r"'input' has text.*--template \"{instruction}"),
        ({"prompt": "\u200b\u2060", "completion": "c"}, "the prompt is empty"),
        ({"prompt": "p", "completion": "\ufeff"}, "the answer .'completion'. is empty"),
        ({"system": "s", "messages": [USER, ANSWER]}, "'system' has text, and the prompt would be 'messages' alone"),
        ({"system": "s", "instruction": "p", "output": "c"}, "'system' has text.*--template"),
        ({"history": [["a", "b"]], "prompt": "p", "completion": "c"}, "'history' has text"),
        ({"tools": [{"name": "f"}], "prompt": [USER], "completion": [ANSWER]}, "'tools' beside 'prompt'"),
        (
            {"messages": [USER, ANSWER], "conversations": [USER, ANSWER]},
            "several conversations in one row .messages, conversations",
        ),
        (
            {"messages": [USER, ANSWER, USER, {**ANSWER, "role": "Assistant"}]},
            "message 4 .* the role 'Assistant'; expected",
        ),
        ({"messages": [USER, {**ANSWER, "role": "model"}]}, "the role 'model'; expected 'assistant'"),
        (
            {"messages": [USER, {**ANSWER, "train": False}]},
            "message 2 of 'messages' has 'train', which is not read; say 1 or 0",
        ),
        ({"messages": [USER, {**ANSWER, "weight": [1]}]}, "has the weight"),
        ({"prompt": [USER], "completion": [{**ANSWER, "weight": 0}]}, "no message of the role 'assistant' to train on"),
    ],
)
def test_rows_that_are_more_than_their_text_are_refused(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(tmp_path, row)


def test_rows_that_say_the_same_with_less_are_read(tmp_path: Path) -> None:
    empty = {**ANSWER, "tool_calls": None, "reasoning_content": "", "function_call": {}}
    (one,) = read(tmp_path, {"messages": [USER, empty], "tools": []})
    assert one.messages == (USER, ANSWER) and one.counted == (1,)
    (one,) = read(
        tmp_path, {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "content": "b", "weight": 1}]}
    )
    assert one.counted == (3,) and one.answers == ("b",)
    (one,) = read(
        tmp_path, {"messages": [USER, {**ANSWER, "content": "", "weight": 0.0}, USER, {**ANSWER, "weight": 1.0}]}
    )
    assert one.counted == (3,)
    (one,) = read(tmp_path, {"system": " ", "history": [], "messages": [USER, {**ANSWER, "train": True}]})
    assert one.counted == (1,)
    (one,) = read(tmp_path, {"prompt": [USER], "completion": [{**ANSWER, "weight": 0}, USER, ANSWER]})
    assert one.counted == (3,)
    for row in ({"instruction": "p", "input": "", "output": "c"}, {"instruction": "p", "output": "c"}):
        assert read(tmp_path, row)[0].columns == {"prompt": "p"}
    told = {"instruction": "p", "input": "of this", "output": "c"}
    assert read(tmp_path, told, template="{instruction} {input}")[0].columns == {"instruction": "p", "input": "of this"}


def test_texts_without_anything_to_see(tmp_path: Path) -> None:
    assert blank("") and blank(" \t\u3000\u200b\u200d\ufeff\u202e\u00ad") and not blank("\u200bx") and not blank("👍")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "\u200b\u200d", "label": "1"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1: the text is empty"):
        read_examples(path, find_task("custom", "{text} {label}", "0=bad,1=good"))


@pytest.mark.parametrize(
    ("labels", "again", "told"),
    [
        ((1,), 0, "no training row has the label '0'"),
        ((0, 1), 0, ""),
        ((0, 1), 1, ""),
        ((0, 1), 20, "20 of 20 held-out rows have the text of a training row"),
    ],
)
def test_what_may_not_be_meant_is_said(tmp_path: Path, labels: tuple[int, ...], again: int, told: str) -> None:
    train, held = tmp_path / "train.tsv", tmp_path / "held.tsv"
    rows = [f"film {i}\t{labels[i % len(labels)]}" for i in range(40)]
    other = [f"story {i}\t{i % 2}" for i in range(20 - again)]
    train.write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    held.write_text("\n".join(["text\tlabel", *other, *rows[:again]]), encoding="utf-8")
    given = {"train": str(train), "validation": str(held), "template": "{text} {label}", "labels": "0=bad,1=good"}
    settings, notes = Settings("m", task="custom", **given), []
    read_task(settings, task_of(settings), notes, training=True)
    assert [told in note for note in notes] == ([True] if told else [])
