"""Functions named as "module:function" in a configuration."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def load(name: str, role: str) -> Callable[..., Any]:
    """The function that `name` names.

    Raises:
        ValueError: it is not "module:function", or there is none; `role` says which setting is wrong.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f'{role} is {name!r}; expected "module:function"')
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"{role} is {name!r}: {error}; install it on every node, or put it into the app") from None
    except AttributeError:
        raise ValueError(f"{role} is {name!r}, but {module} has no {attribute}") from None
    if not callable(found):
        raise ValueError(f"{role} is {name!r}, a {type(found).__name__}; expected a function")
    result: Callable[..., Any] = found
    return result
