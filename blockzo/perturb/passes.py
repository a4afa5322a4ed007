"""Running some blocks of a model on what earlier blocks left: one call of a loss function with some layers bypassed.

The model's own forward always runs. A bypassed layer returns what was kept of it, so whatever the model does around its layers
(masks, rotary tables, position biases, tuples or tensors) is its own code on its own arguments. The loss function may call the
layers any number of times (micro-batches, pairs, two towers, shared layers): outputs are kept as a list in the order of calls.
Only the last bypassed layer's output is known; those before it hand on NaN, so that no loss which reads them is taken for one.

What is kept holds only where the first layer is called with the same inputs as when it was kept, and as often. Both are looked at
in every run: inputs as a fingerprint, whose difference (`drift`) comes back with the loss; calls at once (`PathChanged`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from blockzo.ops.distributed import is_dtensor
from blockzo.perturb.forms import MOST_ENTRIES, form_of
from blockzo.perturb.left import Left

if TYPE_CHECKING:
    from blockzo.perturb.unknown import Unknown

Path = frozenset[tuple[Any, ...]]
"""What the calls of one evaluation looked like: the distinct sequences of layers, each with the form of its model call."""

SAME_INPUTS = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative difference of a fingerprint that stands for rounding, by dtype; another batch size may take another kernel."""
SAME_INPUTS_ELSE = 2e-5
ROUNDED = 1000
"""Drift up to which inputs are the same but for rounding."""


PLAIN = (Tensor, type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout)
"""What an output may be made of: it is copied, or nobody can write to it."""


class PathChanged(Exception):
    """The forward did not go the way that the kept activations were made for."""


class Kept(NamedTuple):
    """Activations after a block.

    Attributes:
        outputs: of its last layer, one a call.
        inputs: fingerprints of the inputs of the first layer, float32 [tensors, 3], one a call.
        drift: largest difference of inputs so far, 1,000 (`ROUNDED`) is the most that rounding explains; an int32 scalar.
        numbers: Python numbers among those inputs, one tuple a call.
        counts: how often each layer was called.
    """

    outputs: list[Any]
    inputs: list[Tensor]
    drift: Tensor
    numbers: list[tuple[float, ...]]
    counts: list[int]


def kept_bytes(kept: Kept) -> int:
    """Of the activations; fingerprints are a few bytes a call."""
    leaves = [leaf for leaf in tree_leaves(kept.outputs) if isinstance(leaf, Tensor)]
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


class Stop(BaseException):
    """Leaves the model's forward once the last wanted layer has run; no `except Exception` of a loss function holds it up."""


class Run:
    """One call of a loss function.

    Args:
        model, layers: as of `Blocks`.
        skip: layers before this number are bypassed.
        end: number after the last wanted layer, whose outputs are kept; None: on to the loss.
        kept: what was kept before layer `skip`; it is not changed.
        calls: how often layer end-1 is called; the forward is left after the last. None: not known, it goes on to its end.
        beyond: called when code after layer end-1 begins to run on activations that are not the model's.
        left: is told when a wanted layer begins.
        unknown: is told what bypassed layers hand on that was not kept.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        skip: int,
        end: int | None,
        kept: Kept | None,
        calls: int | None = None,
        beyond: Callable[[], None] | None = None,
        left: Left | None = None,
        unknown: Unknown | None = None,
    ) -> None:
        self.model, self.layers, self.skip, self.end, self.kept = model, layers, skip, end, kept
        self.calls, self.beyond, self.left, self.unknown = calls, beyond, left, unknown
        self.outputs: list[Any] = []
        self.inputs: list[Tensor] = []
        self.numbers: list[tuple[float, ...]] = []
        self.drift: Tensor | None = None if kept is None else kept.drift
        self.events: list[Any] = []
        self.counts = [0] * len(layers)
        self._given = 0
        self._scratch: Any = None
        self._returned: set[int] = set()
        self._alive: list[Any] = []
        self._error: Exception | None = None

    def to_loss(self, forward: Callable[[], Any]) -> tuple[Any, Tensor]:
        """What `forward` returns, and the drift."""
        assert self.end is None
        with self._instrumented():
            value = forward()
        self._raise_swallowed()
        if self.kept is not None and self._given < len(self.kept.outputs):
            raise PathChanged(
                f"layer {self.skip - 1} was called {self._given} times, {len(self.kept.outputs)} times when its outputs were kept"
            )
        return value, self._drift()

    def to_end(self, forward: Callable[[], Any]) -> Kept:
        """The activations after layer end-1.

        Raises:
            ValueError: that layer was not called.
        """
        assert self.end is not None
        try:
            with self._instrumented():
                forward()
        except Stop:
            pass
        self._raise_swallowed()
        if not self.outputs:
            raise ValueError(
                f"the model's forward ended without running layer {self.end - 1}; expected a model that runs its layers in order "
                "(pass layers= to name another list)"
            )
        return Kept(self.outputs, self.inputs, self._drift(), self.numbers, self.counts)

    @property
    def path(self) -> Path:
        """Calls as they were, with repetitions left out."""
        patterns: set[tuple[Any, ...]] = set()
        current: list[Any] = []
        for event in self.events:
            if isinstance(event, tuple) and event[0] == "call" and current:
                patterns.add(tuple(current))
                current = []
            current.append(event)
        patterns.add(tuple(current))
        return frozenset(patterns)

    def _raise_swallowed(self) -> None:
        """A loss function may catch whatever comes of a layer and go on without it."""
        if self._error is not None:
            raise self._error

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._error = self._error or error
            raise

    def _drift(self) -> Tensor:
        return no_drift() if self.drift is None else self.drift

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        places: dict[int, list[int]] = {}
        for number, layer in enumerate(self.layers):
            places.setdefault(id(layer), []).append(number)
        modules = {id(layer): layer for layer in self.layers}
        before = {key: layer.__dict__.get("forward") for key, layer in modules.items()}
        handles = [
            self.model.register_forward_pre_hook(self._called, with_kwargs=True),
            self.model.register_forward_hook(self._returned_output),
        ]
        try:
            for key, layer in modules.items():
                layer.__dict__["forward"] = self._forward(layer.forward, places[key])
            if self.end is not None:
                handles.append(self.layers[self.end - 1].register_forward_hook(self._leave))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for key, layer in modules.items():
                if before[key] is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.__dict__["forward"] = before[key]
            self._alive.clear()

    def _forward(self, own: Callable[..., Any], places: list[int]) -> Callable[..., Any]:
        """`places`: where the layer stands in the list; one that stands there twice is called for each in turn."""
        calls = 0

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            place = places[calls % len(places)]
            calls += 1
            self.counts[place] += 1
            self.events.append(place)
            with self._noting():
                if place == 0:
                    self._look_at(args, kwargs)
                if place < self.skip:
                    return self._bypass(place)
                if self.end is not None and place >= self.end:
                    return self._pass_on(place)
            if self.left is not None:
                self.left.inside = True
            output = own(*args, **kwargs)
            if self.end is not None and place == self.end - 1:
                with self._noting():
                    output = self._keep(output)
            return output

        return run

    def _bypass(self, place: int) -> Any:
        assert self.kept is not None
        outputs = self.kept.outputs
        if self.counts[place] > self.kept.counts[place]:
            # a loop that waits for numbers which it will not get
            raise PathChanged(
                f"layer {place} was called more often than {self.kept.counts[place]} times, as when outputs were kept"
            )
        if self._given >= len(outputs):
            raise PathChanged(
                f"layer {place} was called more often than the {len(outputs)} times that layer {self.skip - 1} was kept"
            )
        # copies, so that code which works in place cannot change what other runs still need
        if place < self.skip - 1:
            if self._scratch is None:
                self._scratch = self._remember(_unknown(outputs[self._given]))
                if self.unknown is not None:
                    self.unknown.add(self._scratch)
            return self._scratch
        self._scratch = None
        output = self._remember(_copied(outputs[self._given]))
        self._given += 1
        return output

    def _keep(self, output: Any) -> Any:
        odd = next((leaf for leaf in tree_leaves(output) if not isinstance(leaf, PLAIN)), None)
        if odd is not None:
            raise PathChanged(
                f"layer {(self.end or 0) - 1} returns a {type(odd).__name__}, which later layers may write to; expected tensors, "
                "or tuples, lists and dicts of them"
            )
        last = self.calls is not None and len(self.outputs) + 1 >= self.calls
        self.outputs.append(output if last else _copied(output))
        if not last and self.left is not None:
            self.left.inside = False
        if not last and self.beyond is not None:
            self.beyond()
            self.beyond = None
        return output

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # in a hook, after those that other libraries put on the layer
        if self.calls is not None and len(self.outputs) >= self.calls:
            raise Stop

    def _pass_on(self, place: int) -> Any:
        """A layer that is not wanted hands on what the last wanted one gave, so that the next call can be reached."""
        if not self.outputs:
            raise ValueError(
                f"the model's forward came to layer {place} without running layer {(self.end or 0) - 1}; expected a model that "
                "runs its layers in order (pass layers= to name another list)"
            )
        return _copied(self.outputs[-1])

    def _look_at(self, args: Any, kwargs: Any) -> None:
        every = tree_leaves((args, kwargs))
        leaves = [leaf for leaf in every if isinstance(leaf, Tensor)]
        if any(id(leaf) in self._returned for leaf in leaves):
            # the layer is called on what a bypassed one returned, whose inputs were looked at
            self.inputs.append(torch.zeros(0, 3))
            self.numbers.append(())
            return
        found = fingerprint(leaves)
        numbers = tuple(leaf for leaf in every if isinstance(leaf, (int, float)))
        number = len(self.inputs)
        self.inputs.append(found)
        self.numbers.append(numbers)
        if self.kept is None:
            return
        if number >= len(self.kept.inputs):
            raise PathChanged(
                f"layer 0 was called more often than {len(self.kept.inputs)} times, as when outputs were kept"
            )
        if numbers != self.kept.numbers[number]:
            raise PathChanged(
                f"layer 0 was called with the numbers {_few(numbers)}, {_few(self.kept.numbers[number])} when outputs were kept"
            )
        drift = difference(found, self.kept.inputs[number])
        self.drift = drift if self.drift is None else torch.maximum(self.drift.to(drift.device), drift)

    def _remember(self, value: Any) -> Any:
        # ids stay those of these objects only while they live
        self._alive.append(value)
        self._returned |= {id(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
        return value

    def _called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.events.append(("call", _form(args, kwargs)))

    def _returned_output(self, module: nn.Module, args: Any, output: Any) -> None:
        self.events.append(("out", _held(output)))


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _unknown(value: Any) -> Any:
    """Of the same form, with NaN for numbers that were not kept: a loss that reads them is not finite, whatever led it there."""
    return tree_map(lambda leaf: torch.full_like(leaf, math.nan) if _holds_nan(leaf) else _copied(leaf), value)


def _holds_nan(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) and leaf.layout is torch.strided


def _form(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a model call's arguments may change the way it goes: which are given, of which kind, and switches by value."""
    named = tuple((name, form_of(value)) for name, value in sorted(kwargs.items()) if value is not None)
    return (*(form_of(value) for value in args), *named)


def _held(output: Any) -> tuple[Any, ...]:
    """Which entries a model's output has."""
    names: Any = ()
    if isinstance(output, Mapping):
        names = tuple(key for key, value in output.items() if value is not None)
    elif isinstance(output, (tuple, list)) and len(output) <= MOST_ENTRIES:
        names = tuple(value is None for value in output)
    return type(output).__name__, names


def _few(numbers: tuple[float, ...]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", ..." if len(numbers) > 4 else "") or "none"


_weights: dict[tuple[int, torch.device], Tensor] = {}


def _weights_of(count: int, device: torch.device) -> Tensor:
    key = count, device
    if key not in _weights:
        if len(_weights) > 256:
            _weights.clear()
        _weights[key] = torch.cos(torch.arange(count, dtype=torch.float64) * 2.39996 + 0.5).float().to(device)
    return _weights[key]


def fingerprint(leaves: Sequence[Tensor]) -> Tensor:
    """Float32 [tensors, 3]: of each tensor a weighted sum, the sum of its parts' sizes, and what rounding may change.

    Tensors much larger than the first and than all that are no square (attention masks of long texts) are left out: a pass
    over them would cost.
    """
    rows = []
    # their reading is no part of the model: not moved, not counted
    with torch._C.DisableTorchFunction(), torch.no_grad():
        sizes = [leaf.numel() for leaf in leaves if leaf.dim() < 2 or leaf.shape[-1] != leaf.shape[-2]]
        most = 4 * max([1, *sizes, leaves[0].numel()]) if leaves else 0
        for leaf in leaves:
            if not leaf.numel() or leaf.numel() > most or leaf.layout is not torch.strided or is_dtensor(leaf):
                continue
            bound = SAME_INPUTS.get(leaf.dtype, SAME_INPUTS_ELSE)
            plain = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            flat = (plain.reshape(-1, plain.shape[-1]) if plain.dim() else plain.reshape(1, 1)).float()
            along = flat @ _weights_of(flat.shape[-1], flat.device)
            size = along.abs().sum()
            total = (along * _weights_of(along.shape[0], flat.device)).sum()
            rows.append(torch.stack([total, size, torch.full_like(size, bound)]).to(leaves[0].device))
        return torch.stack(rows) if rows else torch.zeros(0, 3)


def no_drift() -> Tensor:
    return torch.zeros((), dtype=torch.int32)


def difference(found: Tensor, kept: Tensor) -> Tensor:
    """Drift of an input whose fingerprint was another."""
    if found.shape != kept.shape:
        raise PathChanged(f"layer 0 was called with {found.shape[0]} tensors, {kept.shape[0]} when outputs were kept")
    if not found.shape[0]:
        return no_drift()
    with torch._C.DisableTorchFunction(), torch.no_grad():
        scale = torch.maximum(found[:, 1], kept[:, 1]) * kept[:, 2]
        ratio = (found[:, 0] - kept[:, 0]).abs() / scale.clamp_min(1e-30)
        # activations that are not finite are told by the loss
        return (torch.nan_to_num(ratio, nan=0.0, posinf=0.0).amax() * ROUNDED).clamp(max=1e9).to(torch.int32)
