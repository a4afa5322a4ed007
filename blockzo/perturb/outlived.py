"""Tensors of a group that outlive it: nobody can read them any more, and a model that holds one cannot be copied."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockzo.perturb import batched


class Outlived:
    """Notes (and does not hold) what functions give while a group runs."""

    def __init__(self) -> None:
        self._made: list[ref[Tensor]] = []

    def note(self, result: Any) -> None:
        self._made += [ref(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def any(self) -> bool:
        """After the group has run: does something hold one of them?"""
        if not self._there():
            return False
        # what waits in a cycle is held by nothing
        gc.collect()
        return self._there()

    def _there(self) -> bool:
        return any((tensor := made()) is not None and batched.is_wrapped(tensor) for made in self._made)
