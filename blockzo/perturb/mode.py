"""The mode: it sees every torch function of a forward and hands it moved values in place of parameters.

A parameter is recognised by identity, a view of it by its storage. Functions that `functions.py` knows make the noise where the
weight is consumed; views stay views of the unmoved parameter until something reads them; all else gets a moved copy of that one
tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from blockzo.perturb import batched, traced, transforms
from blockzo.perturb.causes import found_in, refused_here
from blockzo.perturb.functions import ANSWERS, Known, known
from blockzo.perturb.kinds import Kind, TouchesWeights, written_by
from blockzo.perturb.left import Left
from blockzo.perturb.moves import Moves
from blockzo.perturb.outlived import Outlived
from blockzo.perturb.parameters import Index
from blockzo.perturb.unknown import Unknown
from blockzo.perturb.values import MovedValues, nbytes_of
from blockzo.perturb.wide import CASTS, PRODUCTS, in_float32

_told: set[str] = set()
"""Functions that a copy was reported for; once a process is enough."""


class Outgrown(Exception):
    """A forward has more rows than it was to have; `linear`: in a linear layer, not only in a lookup."""

    def __init__(self, rows: int, linear: bool) -> None:
        super().__init__(f"{rows} rows")
        self.rows, self.linear = rows, linear


class Parted(Exception):
    """A forward branches on what differs between the groups that run together, such as whether a row is padded.

    Attributes:
        lots: groups with one answer, in two lots. flops: of all groups, up to there.
    """

    def __init__(self, answers: Sequence[bool], flops: int) -> None:
        super().__init__("the model branches on what differs between evaluations")
        self.flops = flops
        self.lots = [[g for g, answer in enumerate(answers) if answer is one] for one in (True, False)]


class PerturbedForward(MovedValues, TorchFunctionMode):
    """Runs torch functions on moved weights, and counts FLOPs and the parameters that were used.

    Args:
        index: the parameters to move; all others are used as they are.
        moves: for every block of the index, how.
        barred: parameters that must not be used here, id -> reason (a later block's, see `blocks.py`).
        groups, level: how many evaluations run together, and the level of the `torch.vmap` they run under; None: one alone.
        row_limits: of linear layers and of lookups; one of more rows a group raises `Outgrown`.
        measure: look at the sizes of all operations (`footprint`).

    Attributes:
        used: ids of the parameters that were used. flops: of all groups. rows, lookups: of the largest linear layer and of the
        largest lookup, one group. Of a run that measures, in bytes and parameters left out: `footprint`, operands and results of
        the largest operation; `operands`, the most operands of one.
    """

    def __init__(
        self,
        index: Index | None = None,
        moves: Mapping[int, Moves] | None = None,
        barred: Mapping[int, str] | None = None,
        groups: int = 1,
        level: int | None = None,
        row_limits: tuple[int, int] | None = None,
        measure: bool = False,
    ) -> None:
        super().__init__(index, moves, groups, level, measure)
        self.barred, self.row_limits = barred or {}, row_limits
        self.left: Left | None = None
        self.unknown: Unknown | None = None
        self.outlived: Outlived | None = None
        """Who looks at what is left of a part, at what was not kept, and at what outlives a group."""
        self._caught: Exception | None = None
        self.used: set[int] = set()
        self.flops = self.rows = self.lookups = self.operands = 0

    def __enter__(self) -> PerturbedForward:
        if not torch.compiler.is_dynamo_compiling():
            self.entered += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            self.entered -= 1
        super().__exit__(*error)
        if torch.compiler.is_dynamo_compiling() or self.entered:
            return
        caught, self._caught = self._caught, None
        if caught is None:
            return
        # code such as `load_state_dict` makes an error of its own of what it catches
        if error[0] is None or (isinstance(caught, TouchesWeights) and found_in(error[1], TouchesWeights) is None):
            raise caught from error[1]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return traced.call(self, func, args, kwargs or {})
        try:
            return self._called(func, args, kwargs or {})
        except Exception as error:
            # code that catches it would go on without what was asked for, to a loss that is of something else
            if self.level is not None or refused_here(error):
                self._caught = self._caught or error
            raise

    def _called(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        facts = known(func)
        if facts.kind is Kind.FACT:
            return func(*args, **kwargs)
        if self.level is not None and facts.asked:
            args = (self._agreed(func, args[0]), *args[1:])
        wrapping = batched.transforming()
        moved = self._look(args, wrapping)
        if kwargs:
            moved = self._look(kwargs.values(), wrapping) or moved
        if facts.rows is not None and len(args) > facts.rows:
            self._count_rows(args[facts.rows], func is not torch.nn.functional.embedding)
        result = NotImplemented
        if moved:
            result = self._on_moved(func, facts, args, kwargs, wrapping)
        elif self.level is not None and facts.grouped is not None:
            result = facts.grouped(self, *args, **kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
        if self.unknown is not None:
            self.unknown.look(func, facts.kind, args, kwargs, result)
        if self.left is not None:
            self.left.note(func, facts.kind, args, kwargs, result)
        if facts.formula is not None and isinstance(result, Tensor):
            self.flops += self.groups * facts.formula(args, kwargs, result)
        if self.outlived is not None:
            self.outlived.note(result)
        if self.measure:
            operands = sum(map(nbytes_of, (*args, *kwargs.values())))
            self.operands = max(self.operands, operands)
            self.footprint = max(self.footprint, operands + sum(map(nbytes_of, tree_leaves(result))))
        return result

    def unbar(self) -> None:
        """From here on all parameters may be used: what runs is beyond the part that is wanted."""
        self.barred = {}

    def _agreed(self, func: Callable[..., Any], value: Any) -> Any:
        """What Python is given a number of, for all groups, where it is one number."""
        found = self.lower(value) if isinstance(value, Tensor) else None
        if found is None or not found[1] or found[0].numel() != self.groups:
            return value
        flat = found[0].reshape(-1)
        values = flat.tolist()
        if all(one == values[0] for one in values):
            return flat[0]
        if func in ANSWERS:
            raise Parted([bool(one) for one in values], self.flops)
        return value

    def _on_moved(
        self, func: Callable[..., Any], facts: Known, args: tuple[Any, ...], kwargs: dict[str, Any], wrapping: bool
    ) -> Any:
        result, kind = NotImplemented, facts.kind
        transformed = transforms.derives() or (wrapping and transforms.at_work(self, (*args, *kwargs.values())))
        if kind is Kind.VIEW and not transformed:
            result = self._view(func, args, kwargs)
        if result is NotImplemented and facts.taught is not None and "out" not in kwargs and not transformed:
            result = facts.taught(self, *args, **kwargs)
        if result is not NotImplemented:
            return result
        written = written_by(func, kind, args, kwargs)
        touched = flat((*args, *kwargs.values())) if kind is Kind.ADDRESS else tree_leaves(written) if written else ()
        names = [found[0].name for leaf in touched if (found := transforms.base(self, leaf)) is not None]
        if names:
            raise TouchesWeights.by(func, kwargs, names)
        change = self.moved
        if transformed:
            change = partial(transforms.moved, self)
        else:
            self._tell(func, (*args, *kwargs.values()))
            if func in PRODUCTS or func in CASTS:
                result = in_float32(func, args, kwargs, self.not_rounded, self.wide, self.moved)
                if result is not NotImplemented:
                    return result
        return func(*_each(change, args), **{name: _each(change, value) for name, value in kwargs.items()})

    def _view(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A view of a parameter is moved when it is read, so that a slice or a transpose costs nothing."""
        found = self.find(args[0]) if args else None
        if found is None:
            return NotImplemented
        if not found[0].contiguous:
            if func not in CASTS and self.not_rounded(args[0]):
                raise ValueError(
                    f"the model takes a view of parameter {found[0].name!r}, which does not lie densely, so the view would be of "
                    'a rounded copy; expected a contiguous parameter, or moved="rounded" or "auto" in place of "float32"'
                )
            return NotImplemented
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args[1:], kwargs))):
            return NotImplemented  # an index that copies
        result = func(*args, **kwargs)
        if all(self.find(leaf) is not None and leaf.dtype == args[0].dtype for leaf in tree_leaves(result)):
            return result
        return NotImplemented

    def _look(self, values: Iterable[Any], wrapping: bool) -> bool:
        """Notes the parameters among these; are any of them moved? `wrapping`: a transform is at work."""
        moved = False
        for value in values:
            kind = type(value)
            if kind is Tensor and not wrapping:
                if not self.index.may_hold(value):
                    continue
            elif kind is nn.Parameter and id(value) in self._by_id:
                self._use(value)
                moved = True
                continue
            elif not isinstance(value, Tensor):
                if isinstance(value, (list, tuple)):
                    moved = self._look(value, wrapping) or moved
                continue
            plain = batched.layers(value)[-1] if kind is Tensor and batched.is_wrapped(value) else value
            if type(plain) is not Tensor and isinstance(plain, nn.Parameter):
                self._use(plain)
            moved = moved or transforms.base(self, value) is not None
        return moved

    def _use(self, parameter: Tensor) -> None:
        self.used.add(id(parameter))
        if id(parameter) in self.barred:
            raise ValueError(self.barred[id(parameter)])

    def _count_rows(self, input: Any, linear: bool) -> None:
        count = input.numel() if isinstance(input, Tensor) else 0
        if not count:
            return
        rows = count // input.shape[-1] if linear else count
        if linear:
            self.rows = max(self.rows, rows)
        else:
            self.lookups = max(self.lookups, rows)
        if self.row_limits is not None and rows > self.row_limits[0 if linear else 1]:
            raise Outgrown(rows, linear)

    def _tell(self, func: Callable[..., Any], values: tuple[Any, ...]) -> None:
        name = getattr(func, "__name__", str(func))
        if name in _told:
            return
        large = [found[0] for value in flat(values) if (found := self.find(value)) and not found[0].small]
        if large:
            _told.add(name)
            warnings.warn(
                f"the model hands parameter {large[0].name!r} to {name!r}, which has no perturbed form; it gets a moved copy of "
                "it, made at each call (results are right; this costs time and the memory of that one tensor)",
                stacklevel=5,
            )


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """The leaves of lists and tuples; torch's own walk knows more kinds, and costs ten times as much."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value


def _each(change: Callable[[Any], Any], values: Any) -> Any:
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_each(change, value) for value in values))
    if isinstance(values, (list, tuple)):
        return type(values)(_each(change, value) for value in values)
    return change(values)
