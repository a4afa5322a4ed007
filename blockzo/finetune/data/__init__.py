"""Tasks and rows: from a file of the user's to labelled, tokenised examples in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.finetune.data.read import read_examples
    from blockzo.finetune.data.tasks import PromptTask, find_task

__all__ = ["PromptTask", "find_task", "read_examples"]

__getattr__ = names_of(
    __name__,
    {
        "PromptTask": "blockzo.finetune.data.tasks",
        "find_task": "blockzo.finetune.data.tasks",
        "read_examples": "blockzo.finetune.data.read",
    },
)
