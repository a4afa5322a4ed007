"""Rows of tasks whose answer is written: prompts and answers, or conversations. Errors name file and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockzo.finetune.data.columns import renamed
from blockzo.finetune.data.completion_task import COMPLETION, MESSAGES, PROMPT, CompletionTask
from blockzo.finetune.data.read import WHERE
from blockzo.finetune.data.rows import CHATS, blank, cell, column, read_rows
from blockzo.finetune.errors import UserError

ADVICE = "name the columns with --columns prompt=...,completion=..., or in --template as they are named in the file"
ROLES = {"human": "user", "gpt": "assistant"}
"""Names of ShareGPT's format."""
ANSWERS_TOO = ("assistant", "gpt", "bot", "model", "ai", "chatgpt", "bing", "bard")
"""What other formats call the one who answers, in letters of any size: such a message would not be trained on."""
ASSISTANT = "assistant"
BEYOND = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "audio", "images", "videos")
"""What a message may hold beside its text, and no template is given here: an answer without it would be another answer."""
TOOLS = ("tools", "functions")
BESIDE = ("system", "system_prompt", "history")
"""Columns of other trainers' formats that belong to the prompt."""
WEIGHT = "weight"
"""Of a message, in OpenAI's format: 0 leaves it out of the loss."""
SWITCHES = ("train", "training", "loss", "mask", "loss_mask")
"""The same in others."""


@dataclass(frozen=True)
class WrittenExample:
    """One row.

    Attributes:
        columns: what the prompt's template reads; the prompt itself as `prompt` where there is no template.
        answers: right answers, the first to be trained on.
        messages: a conversation in place of both, and in `counted` the numbers of the messages that are trained on.
        place: `file, line n`, for messages of errors.
    """

    columns: Mapping[str, str]
    answers: tuple[str, ...]
    place: str
    messages: tuple[Mapping[str, str], ...] = ()
    counted: tuple[int, ...] = ()
    label: int = field(default=0)


def read_written(
    path: Path, task: CompletionTask, mapping: Mapping[str, str], where: Mapping[str, str] | None = None
) -> list[WrittenExample]:
    """All rows of a file as examples of `task`.

    Args:
        mapping: name that the task uses -> column of the file.
        where: only rows whose columns have these values.

    Raises:
        UserError: no rows, a missing column, a conversation without an answer.
    """
    result, seen = [], 0
    for number, row in renamed(read_rows(path), mapping, path):
        place = f"{path}, line {number}"
        seen += 1
        if where and any(column(row, key, place, advice=WHERE).strip() != value for key, value in where.items()):
            continue
        result.append(_example(row, task, place))
    if not result:
        found = f"none of its {seen} rows is chosen by --train-where" if seen else "it has no rows"
        raise UserError(f"{path}: no data, {found}; expected at least one row")
    return result


def _example(row: Mapping[str, Any], task: CompletionTask, place: str) -> WrittenExample:
    if task.template is None:
        chats = [name for name in dict.fromkeys((MESSAGES, *CHATS)) if isinstance(row.get(name), list)]
        pair = not chats and isinstance(row.get(PROMPT), list) and isinstance(row.get(COMPLETION), list)
        if len(chats) > 1:
            raise UserError(f"{place}: several conversations in one row ({', '.join(chats)}); leave one")
        _is_whole(row, chats[0] if chats else PROMPT, bool(chats) or pair, place)
        if chats or pair:
            first, last = ([], chats[0]) if chats else (row[PROMPT], COMPLETION)
            before, after = messages(first, PROMPT, place), messages(row[last], last, place)
            chosen = [
                i for i, one in enumerate(after) if one["role"] == ASSISTANT and _counts(row[last][i], i, last, place)
            ]
            return conversation([*before, *after], [len(before) + i for i in chosen], last, place)
    names = task.columns or (PROMPT,)
    columns = {name: column(row, name, place, task.others(name), ADVICE) for name in names}
    if task.template is None and PROMPT not in row and "instruction" in row and not blank(str(row.get("input") or "")):
        raise UserError(
            f"{place}: 'input' has text, and the prompt would be 'instruction' alone; put both into it: --template "
            '"{instruction}\\n\\n{input}\\n\\n"'
        )
    if task.template is not None:
        columns = {name: text.strip() for name, text in columns.items()}
    if all(map(blank, columns.values())):
        raise UserError(f"{place}: the prompt is empty; expected something in {', '.join(columns)}")
    return WrittenExample(columns, _answers(row, task, place), place)


def _answers(row: Mapping[str, Any], task: CompletionTask, place: str) -> tuple[str, ...]:
    there = [name for name in (task.answer, *task.others(task.answer)) if name in row]
    held = row[there[0]] if there else None
    if isinstance(held, list):
        texts = [cell(one, there[0], place) for one in held]
    else:
        texts = [column(row, task.answer, place, tuple(there[:1]), ADVICE)]
    if task.template is not None:
        texts = [text.strip() for text in texts]
    if not texts or blank(texts[0]):
        raise UserError(f"{place}: the answer ({task.answer!r}) is empty; expected a text, or leave the row out")
    return tuple(texts)


def _is_whole(row: Mapping[str, Any], name: str, chat: bool, place: str) -> None:
    """Raises UserError where a part of the prompt stands in a column that is not read."""
    tools = next((beside for beside in TOOLS if row.get(beside)), None) if chat else None
    if tools is not None:
        raise UserError(
            f"{place}: {tools!r} beside {name!r}, and --task sft gives a chat template no tools; write them into the "
            "system message as the model expects them, or leave the row out"
        )
    beside = next((key for key in BESIDE if row.get(key) and not blank(str(row[key]))), None)
    if beside is not None:
        how = f"make messages of it, the first of {name!r}" if chat else 'put it into the prompt: --template "{...}"'
        raise UserError(f"{place}: {beside!r} has text, and the prompt would be {name!r} alone; {how}, or leave it out")


def messages(found: Any, name: str, place: str) -> list[dict[str, str]]:
    """A conversation as role and content of every message.

    Raises:
        UserError: it is none.
    """
    result = []
    for number, one in enumerate(found, 1):
        where = f"{place}: message {number} of {name!r}"
        if not isinstance(one, Mapping):
            raise UserError(f'{where} is no object; expected {{"role": "user", "content": "..."}}')
        beyond = next((name for name in BEYOND if one.get(name)), None)
        if beyond is not None:
            raise UserError(
                f"{where} has {beyond!r}, and --task sft trains on the text of messages alone; write it into the content as the "
                "model's chat template would, or leave the row out"
            )
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            told = "role" if not isinstance(role, str) else "content"
            raise UserError(f'{where} has no text as its {told}; expected {{"role": "user", "content": "..."}}')
        if ROLES.get(role, role) != ASSISTANT and role.strip().lower() in ANSWERS_TOO:
            raise UserError(f"{where} has the role {role!r}; expected {ASSISTANT!r} for answers, which are trained on")
        result.append({"role": ROLES.get(role, role), "content": cell(content, "content", where)})
    return result


def _counts(one: Mapping[str, Any], number: int, name: str, place: str) -> bool:
    """Whether a message is trained on, by its weight."""
    weight = one.get(WEIGHT)
    switch = next((name for name in SWITCHES if one.get(name) not in (None, True)), None)
    if switch is not None:
        raise UserError(
            f"{place}: message {number + 1} of {name!r} has {switch!r}, which is not read; say 1 or 0 as its {WEIGHT!r}, for one "
            "that is trained on or not"
        )
    known = {None: True, "0": False, "1": True, "0.0": False, "1.0": True}
    if not isinstance(weight, (str, type(None))) or weight not in known:
        raise UserError(
            f"{place}: message {number + 1} of {name!r} has the weight {weight}; expected 1, or 0 for one that is not trained on"
        )
    return known[weight]


def conversation(said: list[dict[str, str]], counted: list[int], name: str, place: str) -> WrittenExample:
    if not counted:
        roles = ", ".join(dict.fromkeys(one["role"] for one in said)) or "none"
        raise UserError(
            f"{place}: {name!r} has no message of the role {ASSISTANT!r} to train on (roles here: {roles}); "
            "expected one, of a weight that is not 0"
        )
    empty = next((number for number in counted if blank(said[number]["content"])), None)
    if empty is not None:
        raise UserError(
            f"{place}: message {empty + 1} of {name!r} is an answer without text; expected some, or leave the row out"
        )
    return WrittenExample({}, (said[counted[-1]]["content"],), place, tuple(said), tuple(counted))
