"""How a model stands between evaluations: its parameters, parts, hooks and switches.

A loss function may change a model for a call and change it back after it: adapters are switched off for a reference, a weight or
a layer is exchanged, a hook is put on. An evaluation that is left inside of the call does not come to that.
"""

from __future__ import annotations

from typing import Any

from torch import nn

TABLES = ("_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks")
SWITCHES = (bool, int, float, str, type(None))


class Standing:
    """Taken before an evaluation; what it holds are references, no copies of tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, dict(vars(module)), _tables(module)) for module in model.modules()]
        configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "__dict__")}
        self._configs = [(config, dict(vars(config))) for config in configs.values()]

    def put_back(self) -> bool:
        """Whether anything stood otherwise; it stands as before then."""
        changed = False
        for module, own, tables in self._modules:
            for name, before in tables.items():
                table = vars(module)[name]
                if _entries(table) != _entries(before):
                    changed = True
                    table.clear()
                    table.update(before)
            changed = _switched_back(module, own) or changed
        for config, own in self._configs:
            changed = _switched_back(config, own) or changed
        return changed


def _tables(module: nn.Module) -> dict[str, dict[Any, Any]]:
    return {name: dict(vars(module)[name]) for name in TABLES if name in vars(module)}


def _entries(table: dict[Any, Any]) -> list[tuple[Any, int]]:
    return [(key, id(value)) for key, value in table.items()]


def _switched_back(owner: Any, before: dict[str, Any]) -> bool:
    """A switch that is another now; values that come and go, such as tensors that are kept, are none."""
    changed = False
    for name, value in list(vars(owner).items()):
        old = before.get(name, owner)
        if value is not old and isinstance(value, SWITCHES) and isinstance(old, SWITCHES) and value != old:
            vars(owner)[name] = old
            changed = True
    return changed
