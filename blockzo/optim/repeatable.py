"""Is a loss a function of weights and batch? One evaluation is made again: a step takes differences of losses, and what differs
between two evaluations of the same weights (dropout, other random numbers, a counter) goes into them at full size.
"""

from __future__ import annotations

import math
import random
import struct
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from blockzo.optim.draws import Draws, uses_draws
from blockzo.optim.stale import Watch, depends_on, told
from blockzo.perturb.kinds import TouchesWeights

EVALUATIONS = 2
WHERE_DRAWN = 4
"""Evaluations of a loss that draws random numbers: it may use them rarely."""
ROUNDINGS = 2.0**-21
"""Four float32 roundings of a loss: no larger than what the losses of a step are rounded by."""


class NotRepeatable(ValueError):
    """Two evaluations of the same weights on the same batch gave different losses, or one would give the same of other weights;
    says by how much and why."""


def check_repeatable(
    evaluate_leaf: Callable[[], float | Tensor],
    model: nn.Module | None = None,
    tolerance: float | None = None,
    batch: Any = None,
    writes: bool = True,
) -> int:
    """Evaluates one leaf of the tree again and again and compares the losses.

    Two evaluations; where the loss draws random numbers, four, and two with extreme ones (`draws.py`), since a rare draw may not
    change the first two; one more where it reads what an earlier one made of weights (`stale.py`). Their cost is that many
    losses, once: call it at the first step alone.

    Args:
        evaluate_leaf: the loss of one and the same leaf, the model whole or from kept activations, made anew at every call (no
            output of an earlier call may be returned). A number or a tensor with one element. Enter `evaluation_mode` around it
            as around a step.
        model: its device and dtype say how far its kernels may differ between runs, a buffer that the loss changes is named, and
            caches of what was made of its trainable weights are looked for.
        tolerance: largest relative difference that is let pass; where None, `tolerance_of(model)`.
        batch: what it evaluates; that the loss writes it is told.
        writes: whether the loss may write trainable weights of the model.

    Returns:
        How often the leaf was evaluated.

    Raises:
        NotRepeatable: a ValueError; nothing but the loss function's own state has changed.
        ValueError: it writes a weight and may not; none has been written.
    """
    bound = tolerance_of(model) if tolerance is None else tolerance
    before, versions, given = _generators(), _versions(model), _written(batch)
    watch = None if model is None else Watch(model, writes)

    def evaluate(draws: Draws | None = None) -> float:
        with draws or nullcontext():
            if watch is None:
                return float(evaluate_leaf())
            watch.again()
            with watch:
                return float(evaluate_leaf())

    draws = [Draws(), Draws()]
    first = evaluate(draws[0])
    drawn: set[str] = set()
    count = 1
    while count < (WHERE_DRAWN if drawn else EVALUATIONS):
        try:
            loss = evaluate(draws[1] if count == 1 else None)
        except (torch.OutOfMemoryError, MemoryError, TouchesWeights):
            raise
        except Exception as error:
            raise NotRepeatable(
                "the loss was evaluated, and fails when it is evaluated again on the same batch "
                f"({type(error).__name__}: {error}); expected that it can be, for a step takes differences. Does it take "
                "something out of the batch (pop, del, next, an iterator), or close it? Read it only, and give lists in place of "
                "iterators. The step was not applied"
            ) from error
        count += 1
        now = _generators()
        drawn |= {name for name, state in now.items() if before.get(name) != state}
        if not _alike(first, loss, bound):
            changed = sorted(name for name, version in _versions(model).items() if versions.get(name) != version)
            raise NotRepeatable(_told(first, loss, drawn, changed, _written(batch) != given))
    read = [] if watch is None else watch.read
    if draws[0].drawn != draws[1].drawn:
        count += 2
        if uses_draws(evaluate, draws[0], draws[1], lambda other: _alike(first, other, bound)):
            raise NotRepeatable(
                "the loss is not repeatable: it draws random numbers, other ones in every evaluation, and others than those that "
                f"were drawn in {count - 2} evaluations of the same weights would give another loss (a layer that is left out, "
                "noise above a threshold); expected equal losses, since a step takes their differences. Switch it off where "
                "model.training is False, draw once a batch and put the numbers into it, or set a seed in the loss. The step was "
                "not applied"
            )
    if model is not None and read and math.isfinite(loss):
        count += 1
        if depends_on(read, lambda: float(evaluate_leaf()), loss):
            raise NotRepeatable(
                f"the loss reads values that an earlier evaluation made of trainable weights ({told(model, read)}): a cache, "
                "or a mean of earlier ones, which would not move as the weights do, so that a step's losses would lack what goes "
                "through it. Make them anew in every evaluation, or, where they shall stay as they are in a step, outside of the "
                "loss function; or freeze the weights they are made of with requires_grad_(False). The step was not applied"
            )
    return count


def tolerance_of(model: nn.Module | None) -> float:
    """Relative difference that kernels alone can make: on a CPU that of a few roundings; on other devices sums of atomic
    additions run in any order, in the precision of the weights."""
    tensor = None if model is None else next(iter(model.parameters()), None)
    if tensor is None or tensor.device.type == "cpu":
        return ROUNDINGS
    return 1e-5 if tensor.dtype == torch.float32 else 2e-3


def _alike(one: float, other: float, bound: float) -> bool:
    if struct.pack("<d", one) == struct.pack("<d", other):
        return True
    if not (math.isfinite(one) and math.isfinite(other)):
        # two that are not finite are the step's to refuse
        return not (math.isfinite(one) or math.isfinite(other))
    return abs(one - other) <= bound * max(abs(one), abs(other))


def _generators() -> dict[str, Any]:
    """States of the generators that a loss function is likely to draw from."""
    found: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "Python's module random": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["torch.cuda"] = b"".join(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        found["numpy"] = (name, keys.tobytes(), *rest)
    return found


def _versions(model: nn.Module | None) -> dict[str, int]:
    """How often each buffer was written."""
    if model is None:
        return {}
    return {name: buffer._version for name, buffer in model.named_buffers() if not buffer.is_inference()}


def _written(batch: Any) -> list[int]:
    """How often each tensor of a batch was written."""
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _told(one: float, other: float, drawn: set[str], changed: list[str], batch: bool) -> str:
    causes = []
    if drawn:
        causes.append(f"it draws random numbers ({', '.join(sorted(drawn))})")
    if changed:
        more = ", ..." if len(changed) > 3 else ""
        causes.append(f"it writes buffers of the model ({', '.join(map(repr, changed[:3]))}{more})")
    if batch:
        causes.append("it writes the batch in place, where the next evaluation reads it (let it write a copy)")
    cause = " and ".join(causes) or "it keeps state between calls, or draws from a random generator of its own"
    return (
        f"the loss is not repeatable: two evaluations of the same weights on the same batch gave {one:.9g} and {other:.9g}; "
        f"expected equal losses, since a step takes their differences. Of the loss function: {cause}. Switch dropout off "
        "(training=model.training in functional calls), draw random numbers once a batch and put them into it, and keep no "
        "counters in the loss. The step was not applied"
    )
