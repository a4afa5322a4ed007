"""The operations as `torch.ops.blockzo.*`: schemas, fakes and one implementation for every device, so that torch.compile, export
and tracing see one node each. `blockzo.ops` checks what is given and calls these.

A seed is an int64 with the bits of the uint64; coefficients are float32 values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from blockzo.ops.backends import choice, reference
from blockzo.ops.params import Target
from blockzo.ops.steps import Step

LIBRARY = torch.library.Library("blockzo", "DEF")
NOISE = "int seed, str distribution"
LIBRARY.define(
    f"perturbed_linear(Tensor x, Tensor weight, Tensor? bias, int start, int stream, {NOISE}, int[] directions, float[] scales, "
    "str moved='auto') -> Tensor"
)
LIBRARY.define(
    f"perturbed_copy(Tensor(a!) out, Tensor source, int start, int stream, {NOISE}, int direction, float scale) -> ()"
)
LIBRARY.define(f"perturbed_rows(Tensor weight, Tensor rows, int stream, {NOISE}, int direction, float scale) -> Tensor")
LIBRARY.define(
    f"move_(Tensor(a!)[] tensors, int[] streams, str kind, {NOISE}, int[] directions, float[] coefficients, float factor, "
    "bool stochastic) -> ()"
)
LIBRARY.define(
    "replay_(Tensor(a!)[] tensors, int[] streams, int[] seeds, str[] distributions, int[] terms, int[] directions, "
    "float[] coefficients, float[] factors, bool[] stochastic, bool[] joins) -> ()"
)
LIBRARY.define(f"project(Tensor[] tensors, int[] streams, {NOISE}, int[] directions) -> Tensor")


def signed(seed: int) -> int:
    return seed - (1 << 64) if seed >> 63 else seed


def _step(seed: int, distribution: str, directions: Sequence[int], coefficients: Sequence[float]) -> Step:
    return Step(seed % (1 << 64), distribution, tuple(directions), tuple(coefficients))


def targets_of(tensors: Sequence[Tensor], streams: Sequence[int]) -> list[Target]:
    return [Target("", stream, tensor) for stream, tensor in zip(streams, tensors, strict=True)]


def _perturbed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: int,
    stream: int,
    seed: int,
    distribution: str,
    directions: Sequence[int],
    scales: Sequence[float],
    moved: str = "auto",
) -> Tensor:
    """x [groups, tokens, width] -> [groups, tokens, rows]."""
    step = _step(seed, distribution, directions, scales)
    backend = choice.for_tensor(weight) if x.numel() and weight.numel() else reference
    return backend.perturbed_linear(x, weight, bias, start, step, stream, moved=moved)


def _perturbed_copy(
    out: Tensor, source: Tensor, start: int, stream: int, seed: int, distribution: str, direction: int, scale: float
) -> None:
    step = _step(seed, distribution, [direction], [scale])
    choice.for_tensor(source).perturbed_copy(out, source, start, step, stream)


def _perturbed_rows(
    weight: Tensor, rows: Tensor, stream: int, seed: int, distribution: str, direction: int, scale: float
) -> Tensor:
    out = weight.new_empty(rows.numel(), weight.shape[1])
    step = _step(seed, distribution, [direction], [scale])
    choice.for_tensor(weight).perturbed_rows(out, weight, rows, step, stream)
    return out


def _move(
    tensors: Sequence[Tensor],
    streams: Sequence[int],
    kind: str,
    seed: int,
    distribution: str,
    directions: Sequence[int],
    coefficients: Sequence[float],
    factor: float,
    stochastic: bool,
) -> None:
    """`kind`: "perturb", "shift" or "update"."""
    step = Step(seed % (1 << 64), distribution, tuple(directions), tuple(coefficients), factor, stochastic)
    choice.move(targets_of(tensors, streams), step, kind)


def flattened(steps: Sequence[Step]) -> tuple[list[Any], ...]:
    """Steps as the arguments of `replay_`: `terms` says how many directions and coefficients each step has."""
    return (
        [signed(step.seed) for step in steps],
        [step.distribution for step in steps],
        [len(step.directions) for step in steps],
        [direction for step in steps for direction in step.directions],
        [coefficient for step in steps for coefficient in step.coefficients],
        [step.factor for step in steps],
        [step.stochastic for step in steps],
        [step.joins for step in steps],
    )


def _replay(
    tensors: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    distributions: Sequence[str],
    terms: Sequence[int],
    directions: Sequence[int],
    coefficients: Sequence[float],
    factors: Sequence[float],
    stochastic: Sequence[bool],
    joins: Sequence[bool],
) -> None:
    ends = list(accumulate(terms, initial=0))
    if ends[-1] != len(directions) or ends[-1] != len(coefficients):
        raise ValueError(
            f"terms add up to {ends[-1]} for {len(directions)} directions and {len(coefficients)} coefficients; expected one "
            "of each a term"
        )
    steps = [
        Step(seed % (1 << 64), name, tuple(directions[a:b]), tuple(coefficients[a:b]), factor, rounds, joins=goes_on)
        for seed, name, a, b, factor, rounds, goes_on in zip(
            seeds, distributions, ends[:-1], ends[1:], factors, stochastic, joins, strict=True
        )
    ]
    for backend, part in choice.split(targets_of(tensors, streams)):
        backend.replay_(part, steps)


def _project(
    tensors: Sequence[Tensor], streams: Sequence[int], seed: int, distribution: str, directions: Sequence[int]
) -> Tensor:
    step = _step(seed, distribution, directions, [1.0] * len(directions))
    totals = [0.0] * len(directions)
    for target in targets_of(tensors, streams):
        # one tensor after the other, so that the order of the sum is the order of the parameters
        found = choice.for_tensor(target.tensor).project([target], step)
        totals = [a + b for a, b in zip(totals, found, strict=True)]
    return torch.tensor(totals, dtype=torch.float64)


IMPLEMENTATIONS = {
    "perturbed_linear": _perturbed_linear,
    "perturbed_copy": _perturbed_copy,
    "perturbed_rows": _perturbed_rows,
    "move_": _move,
    "replay_": _replay,
    "project": _project,
}
for _name, _function in IMPLEMENTATIONS.items():
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")


def _fake_linear(x: Tensor, weight: Tensor, *others: object) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0])


def _fake_rows(weight: Tensor, rows: Tensor, *others: object) -> Tensor:
    return weight.new_empty(rows.numel(), weight.shape[1])


def _fake_nothing(*others: object) -> None:
    """Of an operation that writes what it is given."""
    return None


FAKES: dict[str, Callable[..., Tensor | None]] = {
    "perturbed_linear": _fake_linear,
    "perturbed_copy": _fake_nothing,
    "perturbed_rows": _fake_rows,
    "move_": _fake_nothing,
    "replay_": _fake_nothing,
}
for _name, _fake in FAKES.items():
    torch.library.register_fake(f"blockzo::{_name}", _fake, lib=LIBRARY)


@torch.library.register_fake("blockzo::project", lib=LIBRARY)
def _(
    tensors: Sequence[Tensor], streams: Sequence[int], seed: int, distribution: str, directions: Sequence[int]
) -> Tensor:
    return torch.empty(len(directions), dtype=torch.float64, device="cpu")
