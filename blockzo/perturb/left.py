"""What a part of a model leaves beside its output: state that later layers could read, which kept activations lack.

Values of an earlier layer on a module or in a list, auxiliary losses, buffers that are written: in an evaluation that continues
they would be those of another one. A loss may begin to read them at any step, so it is not asked whether it does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockzo.perturb.kinds import Kind, written_by

NUMBERS = frozenset((Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.tolist, Tensor.numpy, Tensor.__array__))
"""Functions that hand values to Python."""


class Left:
    """Notes (and does not hold) what is made and written while a part runs.

    Attributes:
        inside: a layer of the part has begun. What runs before makes masks and tables, of the inputs alone.
        numbers: a layer took numbers out of its activations (`.item()`); where they went cannot be seen.
    """

    def __init__(self) -> None:
        self.inside = self.numbers = False
        self._made: dict[int, tuple[ref[Tensor], bool]] = {}
        self._written: list[ref[Tensor]] = []
        self._places: dict[int, ref[Tensor]] = {}

    def note(
        self, func: Callable[..., Any], kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """One torch function that ran."""
        first = args[0] if args else None
        if func in NUMBERS:
            self.numbers = self.numbers or (self.inside and isinstance(first, Tensor) and _counts(first))
        elif written := written_by(func, kind, args, kwargs):
            for target in tree_leaves(written):
                if self.inside and isinstance(target, Tensor) and not self._is_made(target):
                    self._written.append(ref(target))
                    self._note_place(target, args)
        elif isinstance(result, Tensor):
            # some functions give what they are given
            if result is not first:
                self._made[id(result)] = ref(result), self.inside
                self._note_place(result, args)
        elif isinstance(result, (tuple, list)):
            for one in result:
                if isinstance(one, Tensor):
                    self._made[id(one)] = ref(one), self.inside
                    self._note_place(one, args)

    def places(self, outputs: Any) -> list[Tensor]:
        """Whole numbers made of activations that are there when the part has run (routes, masks, orders), but for `outputs`."""
        kept = {id(leaf) for leaf in tree_leaves(outputs)}
        return [held for one in self._places.values() if (held := one()) is not None and id(held) not in kept]

    def anything(self, outputs: Any) -> bool:
        """Is there more than these outputs, when the part has run?"""
        if self.numbers or not self._there(outputs):
            return self.numbers
        gc.collect()
        return self._there(outputs)

    def _there(self, outputs: Any) -> bool:
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        # an output that is a view holds what it looks into
        kept = {id(one) for leaf in leaves for one in (leaf, leaf._base)}
        made = (held() for held, inside in self._made.values() if inside)
        with torch._C.DisableTorchFunction():
            return any(_counts(tensor) and id(tensor) not in kept for tensor in made) or any(
                _counts(held()) for held in self._written
            )

    def _note_place(self, made: Tensor, args: tuple[Any, ...]) -> None:
        if self.inside and not _counts(made) and any(map(self._leads_to_a_place, args)):
            self._places[id(made)] = ref(made)

    def _leads_to_a_place(self, value: Any) -> bool:
        """Tables and counts of what is there are made of neither."""
        if not isinstance(value, Tensor):
            return False
        held = self._places.get(id(value))
        return _counts(value) or (held is not None and held() is value)

    def _is_made(self, tensor: Tensor) -> bool:
        held = self._made.get(id(tensor))
        return held is not None and held[0]() is tensor


def _counts(tensor: Tensor | None) -> bool:
    """Whole numbers are places and counts, of which no loss has a slope; `places` tells of them."""
    return tensor is not None and (tensor.is_floating_point() or tensor.is_complex())
