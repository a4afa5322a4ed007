"""A configuration file as it is, and numbers in it that cannot be meant. The library that reads it has its own say later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError


def read_configuration(path: Path) -> dict[str, Any]:
    """The JSON object of config.json or adapter_config.json.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a configuration: {error}; fetch or copy it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a configuration: {type(found).__name__} found, expected a JSON object")
    return found


def check_epsilons(source: str, config: Any) -> None:
    """Raises UserError where what norms add to a variance would outweigh it, so that every layer gives about nothing."""
    for name, value in vars(config.get_text_config()).items():
        # a word of the name: "warmup_steps" ends with it, too
        if name.split("_")[-1] in ("eps", "epsilon") and isinstance(value, (int, float)) and not 0 <= value < 1:
            raise UserError(f"{source}: its config.json says {name} {value}; expected a small number, such as 1e-5")
