"""A configuration file as it is; the library that reads it has its own say later."""

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
