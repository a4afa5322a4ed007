"""How the scalars of several clients become one: one file an aggregate, found by being here (docs/extending/aggregate.md)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from blockzo.federated.protocol.aggregates.base import Aggregate
from blockzo.journal.outside import shown

__all__ = ["AGGREGATES", "Aggregate", "aggregate_of", "names_with"]


def _found() -> dict[str, type[Aggregate]]:
    every: dict[str, type[Aggregate]] = {}
    for entry in iter_modules(__path__):
        module = import_module(f"{__name__}.{entry.name}")
        for value in vars(module).values():
            # the module first: in Python 3.10 list[int] is an instance of type, and issubclass of an ABC refuses it
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Aggregate):
                if value is not Aggregate and every.setdefault(value.name, value) is not value:
                    raise TypeError(f"{value} and {every[value.name]} are both named {value.name!r}")
    # the default first
    return {"mean": every["mean"], **every}


AGGREGATES = _found()
"""Name -> class."""


def names_with(what: str) -> str:
    """Names of the aggregates that go with something: an attribute of `Aggregate`."""
    return ", ".join(name for name, kind in AGGREGATES.items() if getattr(kind, what))


def aggregate_of(name: str, options: Mapping[str, Any], fields: Mapping[str, Any]) -> Aggregate:
    """The aggregate that a run's settings name.

    Args:
        options: its own, as they travel.
        fields: of the run's settings; some options are fields of their own.

    Raises:
        ValueError: there is none of this name, or an option does not go with it.
    """
    if name not in AGGREGATES:
        raise ValueError(f"aggregate is {shown(name)}; expected one of {', '.join(AGGREGATES)}")
    kind = AGGREGATES[name]
    if doubled := sorted(set(options) & set(kind.fields_of_run)):
        raise ValueError(
            f"option {doubled[0]} of {name} is a setting of its own; give {kind.fields_of_run[doubled[0]]}"
        )
    return kind.of({**options, **{option: fields[field] for option, field in kind.fields_of_run.items()}})
