"""The operations with their numbers in device memory: `torch.ops.blockzo.*.packed` take the tables of `packed.py` in place of
seed, directions and coefficients. GPU kernels read the tables themselves; other backends are given what they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from blockzo.ops.backends import choice, reference
from blockzo.ops.backends.base import Backend
from blockzo.ops.library import FAKES, LIBRARY, targets_of
from blockzo.ops.packed import PackedStep, check_packed
from blockzo.ops.steps import Step

PACKED = "Tensor step, Tensor terms, str distribution"
LIBRARY.define(
    f"perturbed_linear.packed(Tensor x, Tensor weight, Tensor? bias, int start, int stream, {PACKED}, str moved='auto')"
    " -> Tensor"
)
LIBRARY.define(f"perturbed_copy.packed(Tensor(a!) out, Tensor source, int start, int stream, {PACKED}) -> ()")
LIBRARY.define(f"perturbed_rows.packed(Tensor weight, Tensor rows, int stream, {PACKED}) -> Tensor")
LIBRARY.define(f"move_.packed(Tensor(a!)[] tensors, int[] streams, str kind, {PACKED}, bool stochastic) -> ()")


def _given_to(backend: Backend, step: PackedStep) -> Step:
    # a backend that reads packed steps takes either; its type cannot say so by a switch
    return cast(Step, step) if backend.READS_PACKED else step.read()


def _perturbed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: int,
    stream: int,
    step: Tensor,
    terms: Tensor,
    distribution: str,
    moved: str = "auto",
) -> Tensor:
    """x [groups, tokens, width] -> [groups, tokens, rows]; a term for each group."""
    check_packed(step, terms, weight, x.shape[0])
    backend = choice.for_tensor(weight) if x.numel() and weight.numel() else reference
    given = _given_to(backend, PackedStep(step, terms, distribution))
    return backend.perturbed_linear(x, weight, bias, start, given, stream, moved=moved)


def _perturbed_copy(
    out: Tensor, source: Tensor, start: int, stream: int, step: Tensor, terms: Tensor, distribution: str
) -> None:
    check_packed(step, terms, source, 1)
    backend = choice.for_tensor(source)
    backend.perturbed_copy(out, source, start, _given_to(backend, PackedStep(step, terms, distribution)), stream)


def _perturbed_rows(
    weight: Tensor, rows: Tensor, stream: int, step: Tensor, terms: Tensor, distribution: str
) -> Tensor:
    check_packed(step, terms, weight, 1)
    out = weight.new_empty(rows.numel(), weight.shape[1])
    backend = choice.for_tensor(weight)
    backend.perturbed_rows(out, weight, rows, _given_to(backend, PackedStep(step, terms, distribution)), stream)
    return out


def _move(
    tensors: Sequence[Tensor],
    streams: Sequence[int],
    kind: str,
    step: Tensor,
    terms: Tensor,
    distribution: str,
    stochastic: bool,
) -> None:
    """`kind`: "perturb" (one term), "shift" or "update"; the tensors are all on the device of the tables."""
    for tensor in tensors:
        check_packed(step, terms, tensor, 1 if kind == "perturb" else None)
    for backend, part in choice.split(targets_of(tensors, streams)):
        given = _given_to(backend, PackedStep(step, terms, distribution, stochastic))
        if kind == "perturb":
            backend.perturb_(part, given)
        elif kind == "shift":
            backend.shift_(part, given)
        else:
            backend.replay_(part, [given])


IMPLEMENTATIONS = {
    "perturbed_linear.packed": _perturbed_linear,
    "perturbed_copy.packed": _perturbed_copy,
    "perturbed_rows.packed": _perturbed_rows,
    "move_.packed": _move,
}
for _name, _function in IMPLEMENTATIONS.items():
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"blockzo::{_name}", FAKES[_name.removesuffix(".packed")], lib=LIBRARY)
