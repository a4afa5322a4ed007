"""The operations that other ZO projects build on; each reads and writes every weight at most once.

`params` is a mapping name -> tensor, an `nn.Module` (its trainable parameters under their canonical names), or a list of tensors,
whose names are "0", "1", ... in its order. Tensors are
float32, bfloat16 or float16, of any size and stride. A `Shard`, or a DTensor placed by Shard and Replicate (as the parameters
of `fully_shard` are), is a part of a tensor: it gets the bits that it has when the whole is moved. CPU tensors go to the
compiled kernels where they are installed, all else to the torch reference; the bits are the same.

Every function raises ValueError, before the first write, for: a dtype or layout it does not support, two parameters that
share memory or a stream, a DTensor placed otherwise, a coefficient that is not a finite float32, a direction outside
[0, 2**32 - 1).

`per_weight`, of those that move: name -> a number, or a tensor that broadcasts to the parameter (float32, bfloat16, float16 or
bool), by which its noise is multiplied while it is added: a mask, or how far each weight may go. A parameter that is not named
has 1. A weight whose scale is 0 keeps its bits: it does not decay either. One of 1 changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

import blockzo.ops.torch_version  # noqa: F401  (first: it refuses what the others would fail on)
from blockzo.journal.record import Record, check_record, decay_factor
from blockzo.noise import Noise
from blockzo.ops import library, library_packed, low_rank  # noqa: F401  (both define torch.ops.blockzo)
from blockzo.ops.backends import choice
from blockzo.ops.copies import perturbed_copy, perturbed_rows
from blockzo.ops.digest import digest
from blockzo.ops.distributed import Spread, sum_over_ranks
from blockzo.ops.linear import perturbed_linear
from blockzo.ops.params import Params, Target, check_finite, targets
from blockzo.ops.per_weight import PerWeight, with_scales
from blockzo.ops.shards import Shard
from blockzo.ops.steps import Step, joined_steps, make_step

__all__ = [
    "Shard",
    "digest",
    "fill_",
    "perturb_",
    "perturbed_copy",
    "perturbed_linear",
    "perturbed_rows",
    "project",
    "replay_",
    "shift_",
    "update_",
]

Filled = TypeVar("Filled", Tensor, Shard)


def perturb_(
    params: Params, noise: Noise, scale: float, direction: int = 0, per_weight: PerWeight | None = None
) -> None:
    """w <- w + scale * z, in place, one rounding to the storage dtype."""
    _move(with_scales(targets(params), per_weight), make_step(noise, [direction], [scale]), "perturb")


def shift_(
    params: Params, noise: Noise, terms: Sequence[tuple[int, float]], per_weight: PerWeight | None = None
) -> None:
    """w <- w + sum of scale * z over (direction, scale) terms, in one pass: undo one perturbation, apply the next.

    The sum is accumulated in float32 in the order given, and the weight is rounded once.
    """
    step = make_step(noise, [d for d, _ in terms], [s for _, s in terms])
    _move(with_scales(targets(params), per_weight), step, "shift")


def update_(
    params: Params,
    noise: Noise | Sequence[Noise],
    coefficients: Sequence[float],
    directions: Sequence[int] | None = None,
    decay: float = 0.0,
    stochastic_rounding: bool = False,
    per_weight: PerWeight | None = None,
) -> None:
    """w <- w * (1 - decay) - sum_k c_k z_k, accumulated in float32 in the order given and rounded once.

    Args:
        noise: one for all terms, or K of one distribution, one a term: members of an evolution strategy, each with its seed. All
            go by in one pass. `replay_` of K records is another thing: it rounds at every one, as a record has one seed.
        coefficients: K numbers that already hold the learning rate.
        directions: K directions. Where None: 0 .. K-1; with K noises direction 0 of each.
        decay: learning rate times weight decay (decoupled).
        stochastic_rounding: round bfloat16 and float16 weights stochastically, by bits of the last noise; float32 weights are not
            affected.
    """
    check_finite("decay", decay)
    found = with_scales(targets(params), per_weight)
    if not isinstance(noise, Noise) and isinstance(noise, Sequence):
        directions = [0] * len(coefficients) if directions is None else directions
        steps = joined_steps(noise, directions, coefficients, decay_factor(decay), stochastic_rounding)
        _replay(found, steps)
        return
    directions = range(len(coefficients)) if directions is None else directions
    step = make_step(noise, directions, coefficients, decay_factor(decay), stochastic_rounding)
    _move(found, step, "update")


def fill_(tensor: Filled, noise: Noise, name: str, direction: int = 0) -> Filled:
    """tensor <- z of the parameter `name`, as `Noise.sample` makes it and many times faster: for loops that want noise in memory.

    Values are made in float32 and rounded once to the tensor's dtype. A `Shard` or DTensor gets its part. Returns `tensor`.
    """
    found, step = targets({name: tensor}), make_step(noise, [direction], [1.0])
    with torch.no_grad():
        for target in found:
            target.tensor.zero_()
    # 0 + 1 * z is z to the bit: no value of the noise is 0
    _move(found, step, "perturb")
    return tensor


def _replay(found: list[Target], steps: list[Step]) -> None:
    with torch.no_grad(), _written(found):
        for members, own in low_rank.by_form(found, steps):
            members, direct = _apart(members, own[0])
            for backend, part in choice.split(direct, own[0].rank):
                backend.replay_(part, own)
            torch.ops.blockzo.replay_(*_lists(members), *library.flattened(own))


def _move(found: list[Target], step: Step, kind: str) -> None:
    with torch.no_grad(), _written(found):
        for members, (own,) in low_rank.by_form(found, [step]):
            members, direct = _apart(members, own)
            choice.move(direct, own, kind)
            torch.ops.blockzo.move_(
                *_lists(members),
                kind,
                library.signed(own.seed),
                own.distribution,
                own.directions,
                own.coefficients,
                own.factor,
                own.stochastic,
            )


def _apart(found: list[Target], step: Step) -> tuple[list[Target], list[Target]]:
    """Whole tensors, which the registered operations take; parts, scales and noise of a low rank go straight to the backends."""
    plain = [] if step.rank else [t for t in found if t.place is None and t.per_weight is None]
    held = set(map(id, plain))
    return plain, [t for t in found if id(t) not in held]


@contextmanager
def _written(found: list[Target]) -> Iterator[None]:
    """Autograd saves a DTensor itself and not its local tensor, which is the one that is written."""
    yield
    torch.autograd.graph.increment_version(
        [t.owner for t in found if t.owner is not None and not t.owner.is_inference()]
    )


def _lists(found: list[Target]) -> tuple[list[Tensor], list[int]]:
    return [target.tensor for target in found], [target.stream for target in found]


def replay_(
    params: Params,
    records: Iterable[Record],
    layout: Mapping[str, int] | None = None,
    per_weight: PerWeight | None = None,
) -> None:
    """Many updates in one pass over the weights, rounded at every record: the very bits that training gave.

    All records are checked before the first write: either all of them are applied, or no weight has moved.

    Args:
        records: `blockzo.Record`s, in order.
        layout: canonical parameter name -> number of its block. Needed where records have more than one block.
        per_weight: of all records. Records do not hold it: who replays has to have it.

    Raises:
        ValueError: a record cannot be applied (the text names step, block and number), or parameters and layout do not fit.
    """
    records = [check_record(record) for record in records]
    found = with_scales(targets(params), per_weight)
    blocks = {len(record.blocks) for record in records}
    if len(blocks) > 1:
        raise ValueError(f"records have {sorted(blocks)} blocks; expected the same number in each")
    count = blocks.pop() if blocks else 0
    if count > 1 and layout is None:
        raise ValueError(
            f"records have {count} blocks; pass layout={{parameter name: block}} (blocks.layout, journal.layout)"
        )
    groups: dict[int, list[Target]] = {}
    for target in found:
        if any(record.rank for record in records):
            low_rank.whole_shape(target)
        block = 0 if count <= 1 else _block_of(target.name, layout or {}, count)
        groups.setdefault(block, []).append(target)
    for block, members in groups.items():
        # built one block at a time: nothing in it can be refused any more
        steps = [record_step(record, block) for record in records]
        steps = [step for step in steps if any(step.coefficients) or step.factor != 1.0]
        if steps:
            _replay(members, steps)


def _block_of(name: str, layout: Mapping[str, int], count: int) -> int:
    block = layout.get(name)
    if block is None:
        raise ValueError(f"parameter {name!r} is not in the layout; expected the names that were trained")
    if not 0 <= block < count:
        raise ValueError(f"the layout puts {name!r} into block {block}; the records have {count} blocks")
    return block


def record_step(record: Record, block: int) -> Step:
    part = record.blocks[block]
    return make_step(
        record.noise(block),
        part.directions,
        part.coefficients,
        decay_factor(part.decay),
        record.stochastic_rounding,
    )


def project(params_or_delta: Params, noise: Noise, directions: Sequence[int]) -> Tensor:
    """<delta, z_k> for many directions in one pass, summed over all tensors.

    Returns:
        float64 tensor of shape [len(directions)] on the CPU. Products and sums are float64 in an order that does not depend
        on threads or instruction set. DTensors: the sum over all ranks of their mesh, which must all call this. A `Shard`: the
        sum over this part; add those of the other parts yourself. Sums by parts differ from those of the whole tensor, being
        added in another order: by at most (512 + n / 2048) * 2**-53 * sum |delta_i z_i| for n elements.
    """
    step = make_step(noise, directions, [1.0] * len(directions))
    found = targets(params_or_delta)
    if step.rank:
        return _project_parts(found, step)
    parts = [t for t in found if t.place is not None or t.spread is not None]
    found = [t for t in found if t.place is None and t.spread is None]
    with torch.no_grad():
        totals: Tensor = torch.ops.blockzo.project(
            *_lists(found), library.signed(step.seed), step.distribution, step.directions
        )
    return totals + _project_parts(parts, step) if parts else totals


def _project_parts(parts: list[Target], step: Step) -> Tensor:
    """A rank whose part is empty takes part in the sum over ranks too."""
    sums: dict[Spread | None, list[float]] = {}
    for target in parts:
        key = target.spread
        own = step.of_shape(low_rank.whole_shape(target)) if step.rank else step
        found = choice.for_rank(target.tensor, own.rank).project([target], own)
        sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * len(found)), found, strict=True)]
    return torch.tensor(sum_over_ranks(sums, len(step.directions)), dtype=torch.float64)
