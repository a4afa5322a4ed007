"""What a torch function does with the tensor it is called on: reads facts of it, looks at it, writes it, or uses its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import Any

import torch.nn.functional as F

# Reading these from a parameter says nothing of its values.
_FACTS = frozenset(
    "size dim stride numel nelement ndimension is_contiguous is_floating_point is_complex storage_offset element_size "
    "get_device __len__ __hash__ is_inference has_names is_same_size __repr__ __format__ is_pinned is_shared "
    "is_signed requires_grad_ register_hook is_set_to _is_view __deepcopy__ grad backward".split()
)
_DATA_PROPERTIES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
_ADDRESSES = frozenset(("data_ptr", "untyped_storage", "storage", "_typed_storage", "share_memory_", "__dlpack__"))
_SETTERS = frozenset(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__".split()
)
_VIEWS = frozenset(
    "__getitem__ T mT data t view view_as reshape transpose swapaxes swapdims permute movedim narrow select split chunk "
    "tensor_split unbind squeeze unsqueeze flatten unflatten expand expand_as detach alias contiguous to as_strided".split()
)

_NORMING = frozenset((F.embedding, F.embedding_bag))
"""Shorten the rows that are looked up, in the table itself, where they are given `max_norm`."""


class Kind(Enum):
    FACT = auto()
    """Nothing of the values."""
    VIEW = auto()
    """May return a view."""
    WRITES = auto()
    """Writes its first argument."""
    ADDRESS = auto()
    """Reads memory by its address."""
    VALUES = auto()


@lru_cache(maxsize=4096)
def kind_of(func: Callable[..., Any]) -> Kind:
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        # a property of the tensor
        owner: str = getattr(getattr(func, "__self__", None), "__name__", "")
        if name == "__set__":
            return Kind.WRITES if owner == "data" else Kind.FACT
        if owner not in _DATA_PROPERTIES:
            return Kind.FACT
        name = owner
    elif name in _FACTS:
        return Kind.FACT
    if name in _ADDRESSES:
        return Kind.ADDRESS
    if name in _SETTERS or (name.endswith("_") and not name.endswith("__")):
        return Kind.WRITES
    return Kind.VIEW if name in _VIEWS else Kind.VALUES


def written_by(func: Callable[..., Any], kind: Kind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What a call writes of what it is given; `kind`: that of the function."""
    written = [kwargs["out"]] if "out" in kwargs else []
    if func in _NORMING and (kwargs.get("max_norm") is not None or (len(args) > 3 and args[3] is not None)):
        written += [kwargs["weight"]] if "weight" in kwargs else args[1:2]
    elif "out" not in kwargs and (kind is Kind.WRITES or kwargs.get("inplace") is True):
        # the functions of nn.init name their tensor
        written += args[:1] or list(kwargs.values())[:1]
    return written


class TouchesWeights(ValueError):
    """The model writes a moved parameter, or reads its memory by address."""

    @classmethod
    def by(cls, func: Callable[..., Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> TouchesWeights:
        what = "read its memory by address" if kind_of(func) is Kind.ADDRESS else "write the weight"
        given = " with max_norm" if kwargs.get("max_norm") is not None else ""
        return cls(
            f"the model calls {getattr(func, '__name__', func)!r}{given} on parameter {', '.join(map(repr, names[:3]))} inside a "
            f"perturbed forward, which would {what}; "
            'use evaluate="in_place" for this model, or freeze the parameter with requires_grad_(False)'
        )


def is_fact(func: Callable[..., Any]) -> bool:
    """Does the function read nothing of a parameter's values?"""
    return kind_of(func) is Kind.FACT
