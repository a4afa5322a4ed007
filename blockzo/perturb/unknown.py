"""What bypassed layers hand on that was not kept: NaN in its place, and whatever would hide that it is.

A loss that reads it is not finite, unless a function makes a number, a place or an answer of NaN (`argmax`, `>`, `nan_to_num`).
Such functions are looked at here, so that no loss that was made of it is taken for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockzo.perturb.kinds import Kind
from blockzo.perturb.passes import PathChanged

HIDES = frozenset(
    "nan_to_num nan_to_num_ nansum nanmean nanmedian nanquantile fmax fmin scaled_dot_product_attention".split()
)
"""Functions that give floats for NaN; torch's fast attention does on CPUs, where all scores of a row are."""


class Unknown:
    """Tensors that stand for what was not kept, and those that were made of them; none is held.

    Args:
        places: whole numbers that bypassed layers left, of which nobody can say whose evaluation they are.
    """

    def __init__(self, places: dict[int, ref[Tensor]] | None = None) -> None:
        self._known: dict[int, ref[Tensor]] = {}
        self._places = places or {}

    def add(self, value: Any) -> None:
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and _is_float(leaf):
                self._known[id(leaf)] = ref(leaf)

    def look(
        self, func: Callable[..., Any], kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """One torch function that ran.

        Raises:
            PathChanged: it hides that it was given such a tensor.
        """
        if self._places and any(map(self._is_place, (*args, *kwargs.values()))) and kind is not Kind.WRITES:
            raise PathChanged(
                f"{getattr(func, '__name__', func)!r} reads whole numbers that bypassed layers left (routes, masks, orders), "
                "which are not those of this evaluation"
            )
        if not any(map(self._is, args)) and not (kwargs and any(map(self._is, kwargs.values()))):
            return
        found = tree_leaves(result)
        hides = getattr(func, "__name__", "") in HIDES or any(
            not _is_float(leaf) if isinstance(leaf, Tensor) else isinstance(leaf, (bool, int, float)) for leaf in found
        )
        if hides:
            raise PathChanged(
                f"{getattr(func, '__name__', func)!r} is asked of what lies between bypassed layers: the loss uses more of the "
                "layers than the output of the last (hidden states, hooks on layers, what runs between them)"
            )
        self.add(found)
        if kind is Kind.WRITES:
            self.add(args[0])

    def _is_place(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(self._is_place, value))
        held = self._places.get(id(value))
        return held is not None and held() is value

    def _is(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(self._is, value))
        held = self._known.get(id(value))
        return held is not None and held() is value


def _is_float(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return tensor.is_floating_point() or tensor.is_complex()
