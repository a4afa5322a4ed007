"""What a step evaluates and what it makes of the losses: evaluation trees, methods on them, the planner that chooses.

A method is one class in a file of this folder; every file here is looked at, so that nothing else need name it.
"""

from importlib import import_module
from pkgutil import iter_modules

from blockzo.methods.base import METHODS, Method, Scalars, by_option, described, named, registered

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = ["METHODS", "Method", "Scalars", "by_option", "described", "named", "registered"]
