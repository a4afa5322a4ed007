"""A task whose answer is written, not chosen among words: the loss is that of the answer's tokens alone."""

from __future__ import annotations

from dataclasses import dataclass

from blockzo.finetune.data.task import ANSWER_ALIASES
from blockzo.finetune.data.templates import fields
from blockzo.finetune.errors import UserError
from blockzo.finetune.text_figures import TEXT_FIGURES

PROMPT, COMPLETION, MESSAGES = "prompt", "completion", "messages"


@dataclass(frozen=True)
class CompletionTask:
    """A task with answers in free text.

    Args:
        template: the prompt, with `{column}` for columns of the data; None: rows are conversations (`messages`) or have the
            columns `prompt` and `completion`.
        answer: column with the answer: a text, or a list of texts, of which the first is trained on and every one is right.
        stop: text that ends an answer; None: the tokenizer's end-of-text token.
        metrics: names of `blockzo.finetune.text_figures.TEXT_FIGURES`, of the text that greedy decoding writes.
        train, validation, holdout: as of `PromptTask`.
        folder: of its files, where not its name.
    """

    name: str
    template: str | None = None
    answer: str = COMPLETION
    stop: str | None = None
    metrics: tuple[str, ...] = ()
    train: str | None = None
    validation: str | None = None
    holdout: int = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.template is not None:
            fields(self.template)
        for name in self.metrics:
            if name not in TEXT_FIGURES:
                raise UserError(f"--metrics has {name!r}; expected some of {', '.join(TEXT_FIGURES)}, with commas")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the prompt reads."""
        return () if self.template is None else fields(self.template)

    def others(self, name: str) -> tuple[str, ...]:
        """Column names that stand for one of the task where the data has no column of that name."""
        return ANSWER_ALIASES.get(name, ())
