"""The registry of tasks: ready-made ones, and those of one's own."""

from __future__ import annotations

from dataclasses import replace

from blockzo.finetune.data.completion_task import CompletionTask
from blockzo.finetune.data.ready import READY, WRITTEN
from blockzo.finetune.data.task import PromptTask
from blockzo.finetune.data.templates import ANSWER
from blockzo.finetune.errors import UserError

Task = PromptTask
"""Its name in blockzo 0.1.0."""
TASKS: dict[str, PromptTask] = {task.name: task for task in READY}
"""Whatever lists, reads or documents tasks walks these."""
WRITTEN_TASKS: dict[str, CompletionTask] = {task.name: task for task in WRITTEN}
"""Those whose answer is written."""
OTHERS = {"custom": "own data", "sft": "own conversations, or prompts and answers", "lm": "plain text"}
"""Names that are no entry: tasks that the options describe, and language modelling."""


def register_task(task: PromptTask) -> PromptTask:
    """Makes a task known by its name in this process: `Settings(task=...)`, and runs that are resumed, find it.

    Raises:
        UserError: the name is taken, or is none that can be typed.
    """
    if task.name in TASKS or task.name in WRITTEN_TASKS or task.name in OTHERS:
        raise UserError(f"there is a task {task.name!r} already; give yours another name")
    if not task.name or not all(letter.isalnum() or letter in "-_" for letter in task.name):
        raise UserError(f"the task's name is {task.name!r}; expected letters, digits, - and _")
    TASKS[task.name] = task
    return task


def find_task(
    name: str,
    template: str | None = None,
    labels: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
) -> PromptTask:
    """A ready-made task, with another template, label words or columns where given; `custom` for one's own data.

    Raises:
        UserError: the name is not known, or `custom` without template and labels.
    """
    for option, column in (("--label-column", label_column), ("--text-column", text_column)):
        if column is not None and not column.strip():
            raise UserError(f"{option} is {column!r}; expected the name of a column of the data")
    words = parse_labels(labels) if labels is not None else None
    template = template.replace("\\n", "\n") if template is not None else None
    if name == "custom":
        if template is None or words is None:
            raise UserError(
                "the task `custom` needs --template and --labels, for example "
                '--template "{text} It was {label}." --labels "0=terrible,1=great"'
            )
        return PromptTask("custom", template, words, label_column=label_column or ANSWER, text_column=text_column)
    if name not in TASKS:
        told = " or ".join(f"{other} ({note})" for other, note in OTHERS.items())
        raise UserError(
            f"task is {name!r}; expected one of {', '.join([*TASKS, *WRITTEN_TASKS])}, {told}. A task of your own has to "
            "be registered first (blockzo.finetune.register_task)"
        )
    ready = TASKS[name]
    return replace(
        ready,
        template=ready.template if template is None else template,
        words=ready.words if words is None else words,
        masked_template=ready.masked_template if template is None else None,
        label_column=label_column or ready.label_column,
        text_column=text_column or ready.text_column,
    )


def find_written_task(name: str, template: str | None = None, metrics: str | None = None) -> CompletionTask | None:
    """A task whose answer is written, with another prompt or other metrics where given; None where the name is of another kind.

    Raises:
        UserError: a metric that there is not.
    """
    if name not in WRITTEN_TASKS and name != "sft":
        return None
    task = WRITTEN_TASKS.get(name) or CompletionTask("sft")
    if template is not None:
        task = replace(task, template=template.replace("\\n", "\n"))
    if metrics is not None:
        task = replace(task, metrics=tuple(entry.strip() for entry in metrics.split(",") if entry.strip()))
    return task


def parse_labels(text: str) -> dict[str, str]:
    """`0=terrible,1=great` -> {"0": "terrible", "1": "great"}.

    Raises:
        UserError: an entry without `=`, a label twice, fewer than two labels.
    """
    words: dict[str, str] = {}
    for entry in text.split(","):
        label, found, word = entry.partition("=")
        label = label.strip()
        if not found or not label or not word.strip():
            raise UserError(f"--labels has {entry!r}; expected LABEL=WORD entries like 0=terrible,1=great")
        if label in words:
            raise UserError(f"--labels names label {label!r} twice; expected every label once")
        words[label] = word.strip()
    return words
