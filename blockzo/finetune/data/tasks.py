"""Tasks as prompts with label words: a template over the columns of the data, and a word for every label.

Templates of the ready-made tasks follow the published ones of MeZO (Malladi et al., NeurIPS 2023) and LM-BFF (Gao et al.,
ACL 2021) where these end or can be made to end with the label word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from blockzo.finetune.errors import UserError

ANSWER = "label"
"""The place of the label word in a template, `{label}`; `{mask}` means the same."""

BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text_a", "sentence"),
    "premise": ("text_a", "sentence1"),
    "hypothesis": ("text_b", "sentence2"),
    "description": ("text",),
}
"""Other column names that stand for a template's field where the data has no column of that name."""


@dataclass(frozen=True)
class PromptTask:
    """A classification task.

    Args:
        template: text with `{column}` for columns of the data and `{label}` where the label word stands. Causal models read
            up to `{label}`; masked models see their mask token there.
        words: label as it is written in the data -> label word; the order numbers the classes.
        masked_template: another template for masked models, or None.
        train, validation: file names under the task's data folder, or None.
    """

    name: str
    template: str
    words: Mapping[str, str]
    masked_template: str | None = None
    train: str | None = None
    validation: str | None = None
    holdout: int = field(default=0)
    """Rows taken off the training file for validation where the task has no validation file."""
    label_column: str = ANSWER
    text_column: str | None = None
    """The data's name of the template's `{text}`, or of its only column."""

    def __post_init__(self) -> None:
        for template in (self.template, self.masked_template):
            if template is not None:
                fields(template)
        if len(self.words) < 2:
            raise UserError(
                f"the task has {len(self.words)} label(s) {dict(self.words)}; expected two or more (--labels)"
            )
        for label, word in self.words.items():
            if not word.strip():
                raise UserError(f"label {label!r} has an empty word; expected --labels like 0=terrible,1=great")
        if self.text_column is not None and "text" not in self.columns and len(self.columns) > 1:
            raise UserError(
                f"--text-column is for templates with one column or with {{text}}; this one reads {', '.join(self.columns)}: "
                "name the columns in --template as they are named in the file"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that some template reads, `label` not among them."""
        found = [*fields(self.template), *(fields(self.masked_template) if self.masked_template else ())]
        return tuple(dict.fromkeys(found))

    def source(self, name: str) -> str:
        """The data's name of a template's column."""
        if self.text_column is not None and (name == "text" or len(self.columns) == 1):
            return self.text_column
        return name

    def parts(self, masked: bool) -> tuple[str, str]:
        """The template before and after the label word, as text that still holds its `{column}` fields."""
        template = self.masked_template if masked and self.masked_template is not None else self.template
        found = pieces(template)
        place = next((i for i, (_, name) in enumerate(found) if name in (ANSWER, "mask")), None)
        if place is None:
            return template if template.endswith(("\n", " ")) else template + " ", "."
        return _written([*found[:place], (found[place][0], None)]), _written(found[place + 1 :])


Task = PromptTask
"""Its name in blockzo 0.1.0."""


def pieces(template: str) -> list[tuple[str, str | None]]:
    """A template as pairs of literal text and the name of the column after it, or None where none comes.

    Raises:
        UserError: unbalanced or empty braces.
    """
    found: list[tuple[str, str | None]] = []
    literal, at = "", 0
    for match in BRACES.finditer(template):
        literal += template[at : match.start()]
        at = match.end()
        if match.group() in ("{{", "}}"):
            literal += match.group()[0]
        elif not (match.group(1) or "").strip():
            raise UserError(
                f'template {template!r}: {match.group()!r} at character {match.start() + 1}; expected text like "{{text}} It was '
                '{label}.", with the name of a column in braces, and {{ or }} for a brace'
            )
        else:
            found.append((literal, match.group(1).strip()))
            literal = ""
    return [*found, (literal + template[at:], None)]


def render(template: str, columns: Mapping[str, str]) -> str:
    """The template with its columns filled in; braces in these stay text."""
    return "".join(text + ("" if name is None else columns[name]) for text, name in pieces(template))


def _written(found: list[tuple[str, str | None]]) -> str:
    return "".join(
        text.replace("{", "{{").replace("}", "}}") + ("" if name is None else f"{{{name}}}") for text, name in found
    )


def fields(template: str) -> tuple[str, ...]:
    """The columns that a template reads, in order.

    Raises:
        UserError: unbalanced braces, more than one `{label}`, or no column at all.
    """
    names = [name for _, name in pieces(template) if name is not None]
    columns = [name for name in names if name not in (ANSWER, "mask")]
    if len(names) - len(columns) > 1:
        raise UserError(
            f"template {template!r} has the label word more than once; expected one {{label}} (or {{mask}})"
        )
    if not columns:
        raise UserError(
            f'template {template!r} reads no column of the data; expected text like "{{text}} It was {{label}}."'
        )
    return tuple(dict.fromkeys(columns))


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


_ENTAILMENT = {"entailment": "Yes", "not_entailment": "No"}
TASKS: dict[str, PromptTask] = {
    task.name: task
    for task in (
        PromptTask(
            "sst2",
            "{text} It was {label}.",
            {"0": "terrible", "1": "great"},
            train="train.tsv.gz",
            validation="dev_glue.tsv.gz",
        ),
        PromptTask(
            "sst5",
            "{text} It was {label}.",
            {"0": "terrible", "1": "bad", "2": "okay", "3": "good", "4": "great"},
            train="train.tsv.gz",
            validation="dev.tsv.gz",
        ),
        PromptTask(
            "rte",
            '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n{label}',
            _ENTAILMENT,
            masked_template="{premise}? {label}, {hypothesis}",
            train="train.jsonl.gz",
            validation="val.jsonl.gz",
        ),
        PromptTask(
            "trec",
            "Question: {text}\nThe answer is a {label}",
            {"0": "description", "1": "entity", "2": "abbreviation", "3": "person", "4": "location", "5": "number"},
            masked_template="{label}: {text}",
            train="train.tsv.gz",
            validation="test.tsv.gz",
        ),
        PromptTask(
            "boolq",
            "{passage} {question}?\n{label}",
            {"true": "Yes", "false": "No"},
            masked_template="{question}? {label}. {passage}",
            train="val.jsonl.gz",
            holdout=1000,
        ),
        PromptTask(
            "cb",
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n{label}',
            {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"},
            masked_template="{premise}? {label}, {hypothesis}",
            train="train.jsonl.gz",
            validation="val.jsonl.gz",
        ),
        PromptTask(
            "agnews",
            "{description}\nTopic: {label}",
            {"0": "World", "1": "Sports", "2": "Business", "3": "Technology"},
            masked_template="{label} news: {description}",
            train="train_subset.tsv.gz",
            validation="test.tsv.gz",
        ),
    )
}


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
        raise UserError(f"task is {name!r}; expected one of {', '.join(TASKS)}, custom (own data) or lm (plain text)")
    ready = TASKS[name]
    return PromptTask(
        name,
        template if template is not None else ready.template,
        words if words is not None else ready.words,
        masked_template=ready.masked_template if template is None else None,
        train=ready.train,
        validation=ready.validation,
        holdout=ready.holdout,
        label_column=label_column or ANSWER,
        text_column=text_column,
    )
