"""Which parameters are trained, by their names."""

from __future__ import annotations

import fnmatch
from typing import Any

from blockzo.finetune.errors import UserError


def freeze_others(model: Any, patterns: str) -> None:
    """Leaves trainable only the parameters whose names match one of the comma-separated patterns (`*` and `?` as in a shell).

    Raises:
        UserError: a pattern matches nothing.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"--trainable {pattern!r} matches no parameter; expected patterns like '*norm*', and names like {names[0]}"
            )
    for name, parameter in model.named_parameters():
        matched = any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
        parameter.requires_grad_(parameter.requires_grad and matched)
