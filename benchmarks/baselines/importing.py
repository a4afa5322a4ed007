"""Imports a module of a checkout that was written for older libraries.

What cannot be imported is stood in for by a name that does nothing, outside the checkout only, and the import is tried again. The
process that does this serves the checkout alone.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MOST = 200
"""Names that are stood in for before the import is given up."""


class StandIn:
    """Any name: it can be called, subclassed, used as a decorator and asked for more names, to no effect."""

    def __init__(self, *given: object, **named: object) -> None:
        pass

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0] if len(given) == 1 and callable(given[0]) else self

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


class StandInModule(ModuleType):
    """A module that has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn


def _no(*given: Any, **named: Any) -> bool:
    return False


def imported(folder: Path, name: str) -> ModuleType:
    """The module `name` of the checkout's `folder`.

    Raises:
        ImportError: its own modules lack what it imports of them, or too much is missing.
    """
    sys.path.insert(0, str(folder))
    for _ in range(MOST):
        sys.modules.pop(name, None)
        try:
            return importlib.import_module(name)
        except ImportError as error:
            _stand_in(folder, error)
    raise ImportError(f"{name} of {folder} lacks more than {MOST} names here; expected a checkout of its main branch")


def _stand_in(folder: Path, error: ImportError) -> None:
    lacking = re.match(r"cannot import name '([^']+)' from '([^']+)'", str(error))
    if lacking:
        what, where = lacking.groups()
        module = sys.modules.get(where)
        file = getattr(module, "__file__", None) or ""
        if module is None or Path(file).is_relative_to(folder):
            raise error
        # what asks for a library that nobody has any more is answered no
        setattr(module, what, _no if what.startswith("is_") else StandIn)
    elif isinstance(error, ModuleNotFoundError) and error.name:
        if (folder / error.name.partition(".")[0]).exists():
            raise error
        module = sys.modules[error.name] = StandInModule(error.name)
        above, _, last = error.name.rpartition(".")
        if above in sys.modules:
            setattr(sys.modules[above], last, module)
    else:
        raise error
