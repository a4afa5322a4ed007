"""Python of the user's own, named as FILE.py:NAME; whoever names it lets its code run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError


def load_own(option: str, text: str, expected: str) -> Any:
    """What `text` (FILE.py:NAME) names; the file's code runs.

    Args:
        option: as it is typed, for messages.
        expected: what the file should hold, such as `def short(prompts, answers, right)`; "NAME" in it is the name.

    Raises:
        UserError: there is none.
    """
    path, found, name = text.rpartition(":")
    if not found or not name.isidentifier() or not path.endswith(".py"):
        raise UserError(f"{option} is {text!r}; expected FILE.py:NAME")
    if not Path(path).is_file():
        raise UserError(f"{option}: {path} does not exist; give the path of a Python file")
    module_name = "blockzo_own_" + re.sub(r"\W", "_", str(Path(path).resolve().with_suffix("")))
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{option}: {path} cannot be run ({type(error).__name__}: {error}); mend it") from error
    if not hasattr(module, name):
        raise UserError(f"{option}: {path} has no {name!r}; expected {expected.replace('NAME', name)}")
    return getattr(module, name)
