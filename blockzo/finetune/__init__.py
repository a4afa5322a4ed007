"""`blockzo finetune` as functions: `finetune`, `resume`, `dry_run`, `evaluate`, `replay` (docs/finetune.md).

Needs transformers; nothing here is imported by `import blockzo`, and nothing below is before its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.finetune.data.tasks import TASKS, PromptTask, register_task
    from blockzo.finetune.errors import Interrupted, UserError
    from blockzo.finetune.evaluation import evaluate
    from blockzo.finetune.plan import dry_run
    from blockzo.finetune.rebuild import replay
    from blockzo.finetune.run import finetune, resume
    from blockzo.finetune.settings import Settings

__all__ = [
    "TASKS",
    "Interrupted",
    "Settings",
    "PromptTask",
    "UserError",
    "dry_run",
    "evaluate",
    "finetune",
    "register_task",
    "replay",
    "resume",
]

__getattr__ = names_of(
    __name__,
    {
        "TASKS": "blockzo.finetune.data.tasks",
        "Interrupted": "blockzo.finetune.errors",
        "Settings": "blockzo.finetune.settings",
        "PromptTask": "blockzo.finetune.data.tasks",
        "Task": "blockzo.finetune.data.tasks",
        "UserError": "blockzo.finetune.errors",
        "dry_run": "blockzo.finetune.plan",
        "evaluate": "blockzo.finetune.evaluation",
        "finetune": "blockzo.finetune.run",
        "register_task": "blockzo.finetune.data.tasks",
        "replay": "blockzo.finetune.rebuild",
        "resume": "blockzo.finetune.run",
    },
)
