"""`blockzo finetune` as functions: `finetune`, `resume`, `dry_run`, `evaluate`, `replay` (docs/finetune.md).

Needs transformers; nothing here is imported by `import blockzo`.
"""

from blockzo.finetune.errors import Interrupted, UserError
from blockzo.finetune.evaluation import evaluate
from blockzo.finetune.loop import finetune, resume
from blockzo.finetune.plan import dry_run
from blockzo.finetune.replay import replay
from blockzo.finetune.settings import Settings
from blockzo.finetune.tasks import TASKS, Task

__all__ = [
    "TASKS",
    "Interrupted",
    "Settings",
    "Task",
    "UserError",
    "dry_run",
    "evaluate",
    "finetune",
    "replay",
    "resume",
]
