"""A classification task as a prompt with label words: a template over the columns of the data, and a word for every label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blockzo.finetune.data.templates import ANSWER, fields, pieces, written
from blockzo.finetune.errors import UserError

ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text_a", "sentence"),
    "premise": ("text_a", "sentence1"),
    "hypothesis": ("text_b", "sentence2"),
    "description": ("text",),
}
"""Other column names that stand for a template's field where the data has no column of that name."""
ANSWER_ALIASES: dict[str, tuple[str, ...]] = {
    "passage": ("context",),
    "question": ("query",),
    "answer": ("answers.text", "answers"),
    "document": ("article", "text", "dialogue"),
    "summary": ("highlights",),
    "completion": ("response", "output"),
    "prompt": ("instruction",),
}
"""The same of tasks whose answer is written."""


@dataclass(frozen=True)
class PromptTask:
    """A classification task.

    Args:
        template: text with `{column}` for columns of the data and `{label}` where the label word stands. Causal models read
            up to `{label}`; masked models see their mask token there.
        words: label as it is written in the data -> label word; the order numbers the classes.
        masked_template: another template for masked models, or None.
        train, validation: file names under the task's data folder (`data/NAME`, or in `--data-dir`), whole paths, or None.
        metrics: figures beside accuracy, loss, and for two classes AUC: names of `blockzo.finetune.metrics.FIGURES`.
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
    metrics: tuple[str, ...] = ()

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
        return written([*found[:place], (found[place][0], None)]), written(found[place + 1 :])
