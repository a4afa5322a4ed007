"""Values that a loss made of trainable weights in one evaluation and reads in the next: a cache that moved weights do not reach.

Fused weights, features behind `lru_cache`, a reference made at the first call: two evaluations of the same weights agree on them,
and a step's losses lack the part of the slope that goes through them. So what an evaluation made of weights is remembered (not
held), and what of it the next one reads without writing it first is set to NaN for one more evaluation: is the loss another?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from blockzo.noise import canonical_name
from blockzo.perturb.kinds import Kind, TouchesWeights, kind_of, written_by

_FORMS = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")
LIKE = frozenset({*_FORMS, "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided"})
"""Of the first argument they take the form alone, as masks and positions do that are made once."""
AS = frozenset({"to", "type_as", "expand_as", "view_as", "reshape_as"})
"""Of the others."""
ADDS = frozenset(
    "add sub mul div pow lerp addcmul addcdiv addmm addmv addbmm baddbmm addr multiply subtract divide true_divide iadd isub "
    "imul itruediv ipow index_add scatter_add index_reduce scatter_reduce".split()
)
"""In place these go on from what was there, as a running mean or a teacher that follows does."""


class Watch(TorchFunctionMode):
    """Enter it around one evaluation after the other, and call `again` between two.

    Args:
        writes: whether trainable weights may be written; where not, what would is refused (`TouchesWeights`).

    Attributes:
        read: tensors that an earlier evaluation made of trainable weights, and this one read.
    """

    def __init__(self, model: nn.Module, writes: bool = True) -> None:
        super().__init__()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {id(p): p for p in trained.values()}
        self._names = {} if writes else {_memory(p): canonical_name(name) for name, p in trained.items()}
        self._refused: TouchesWeights | None = None
        self.made: dict[int, ref[Tensor]] = {}
        self.old: dict[int, ref[Tensor]] = {}
        self.read: list[Tensor] = []

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        # code such as `load_state_dict` makes an error of its own of what it catches
        if self._refused is not None and error[1] is not self._refused:
            raise self._refused from error[1]

    def again(self) -> None:
        self.old = {number: held for number, held in self.made.items() if held() is not None}
        self.made, self.read = {}, []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling() or kind_of(func) is Kind.FACT:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        kind = kind_of(func)
        written = tree_leaves(written_by(func, kind, args, kwargs))
        written = [leaf for leaf in written if isinstance(leaf, Tensor)]
        goes_on = "out" not in kwargs and _plain(func) in ADDS
        for tensor in written:
            self._check(func, kwargs, tensor)
            if goes_on and self._is(self.old, tensor):
                self.read.append(tensor)
            self._forget(tensor)
        stale = [tensor for tensor in given if self._is(self.old, tensor)] if self.old else []
        of_weights = any(
            id(tensor) in self.weights or self._is(self.made, tensor) for tensor in _sources(func, args, kwargs)
        )
        result = func(*args, **kwargs)
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if stale and kind is Kind.VIEW:
            self._note(self.old, found)
        elif stale:
            self.read += stale
        if of_weights:
            self._note(self.made, [*found, *written])
        return result

    def _check(self, func: Any, kwargs: dict[str, Any], tensor: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            name = self._names.get(_memory(tensor)) if self._names else None
        if name is not None:
            self._refused = TouchesWeights.by(func, kwargs, [name])
            raise self._refused

    def _is(self, known: dict[int, ref[Tensor]], tensor: Tensor) -> bool:
        held = known.get(id(tensor))
        return held is not None and held() is tensor

    def _note(self, known: dict[int, ref[Tensor]], tensors: list[Tensor]) -> None:
        for tensor in tensors:
            # a method in place gives the tensor it wrote, which may be a weight
            if id(tensor) not in self.weights:
                known[id(tensor)] = ref(tensor)

    def _forget(self, tensor: Tensor) -> None:
        """It is written, so what is read of it later is new; so is what else shares its memory."""
        if not self.old:
            return
        with torch._C.DisableTorchFunction():
            place = _memory(tensor)
            for number, held in list(self.old.items()):
                other = held()
                if other is None or other is tensor or (place is not None and _memory(other) == place):
                    del self.old[number]


def _sources(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors whose values are in the result."""
    name = getattr(func, "__name__", "")
    read: Any = args[:1] if name in AS else (args[1:] if name in LIKE else args, kwargs)
    return [leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]


def _plain(func: Any) -> str:
    """`mul` of `mul_`, `__imul__` is `imul`."""
    return str(getattr(func, "__name__", "")).strip("_").removeprefix("foreach_")


def _memory(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


@contextmanager
def poisoned(tensors: list[Tensor]) -> Iterator[bool]:
    """With NaN in those of them that can hold it; whether there are any."""
    held: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        # what the loss made in inference mode is written in it alone
        with torch.inference_mode():
            for tensor in tensors:
                if (
                    id(tensor) not in held
                    and tensor.is_floating_point()
                    and tensor.numel()
                    and _memory(tensor) is not None
                ):
                    held[id(tensor)] = tensor, tensor.clone()
            for tensor, _ in held.values():
                tensor.fill_(float("nan"))
        yield bool(held)
    finally:
        with torch.inference_mode():
            for tensor, values in held.values():
                tensor.copy_(values)


def depends_on(tensors: list[Tensor], evaluate: Callable[[], float], expected: float) -> bool:
    """Is the loss another one when these hold NaN? Costs an evaluation."""
    with poisoned(tensors) as any_there:
        if not any_there:
            return False
        try:
            found = evaluate()
        except Exception:
            return True  # NaN where an index or a probability was expected
    return found != expected


def told(model: nn.Module, tensors: list[Tensor]) -> str:
    """Where they are held, where that can be seen, and their shapes."""
    wanted = {id(tensor) for tensor in tensors}
    names = []
    for place, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if name not in ("_parameters", "_modules", "_buffers") and _holds(value, wanted):
                names.append(f"{place}.{name}" if place else name)
    shapes = ", ".join(dict.fromkeys(str(list(tensor.shape)) for tensor in tensors[:3]))
    return f"{', '.join(map(repr, dict.fromkeys(names)))} of the model, {shapes}" if names else f"of shape {shapes}"


def _holds(value: Any, wanted: set[int]) -> bool:
    try:
        return any(id(leaf) in wanted for leaf in tree_leaves(value))
    except Exception:  # a container of its own kind
        return False
