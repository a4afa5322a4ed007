"""Packages whose names are loaded at first use, so that a command that needs no model does not wait for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: name -> its value, imported from the module that `homes` says (no module may have the name
    of one of them)."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; expected one of {', '.join(homes)}")
        return getattr(import_module(homes[name]), name)

    return find
