"""A model whose weights are moved without being written.

`perturbed` is what users hold; `PerturbedForward` (mode.py) is the mode behind it, `parameters.py` what it moves, `functions.py`
and `kinds.py` what it knows of torch's functions, `small.py` the norm weights and biases, `batched.py` several groups at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from blockzo.noise import Noise
from blockzo.ops.params import check_finite, whole_targets
from blockzo.perturb.kinds import is_fact
from blockzo.perturb.mode import PerturbedForward
from blockzo.perturb.parameters import Index, Move


@contextmanager
def perturbed(
    model: nn.Module, noise: Noise, directions: Sequence[int] = (0,), scales: Sequence[float] = (1e-3,)
) -> Iterator[PerturbedForward]:
    """Inside the block, forward passes of `model` see `w + scale * z` for every trainable parameter; no weight is written.

    Args:
        model: any module; parameters with `requires_grad` are moved, under their canonical names.
        directions, scales: one of each. For several at once: `blockzo.perturbed_losses`.

    Yields:
        The mode; its `flops` counts what ran inside.

    Raises:
        ValueError: a parameter is unsupported, or the model writes a parameter or reads its memory by address.
    """
    if len(directions) != 1 or len(scales) != 1:
        raise ValueError(
            f"directions has {len(directions)} entries and scales {len(scales)}; a forward inside `perturbed` sees one: "
            "pass one of each, or use blockzo.perturbed_losses(model, noise, directions, scales, forward)"
        )
    move = make_move(noise, directions, scales)
    with torch.no_grad(), PerturbedForward(Index({0: whole_targets(model, "a perturbed forward")}), {0: move}) as mode:
        yield mode


def make_move(noise: Noise, directions: Sequence[int], scales: Sequence[float]) -> Move:
    """Checked; one group for each direction and scale."""
    for scale in scales:
        check_finite("scale", float(scale))
    return Move(noise, tuple(map(int, directions)), tuple(map(float, scales)))


__all__ = ["Index", "Move", "PerturbedForward", "is_fact", "make_move", "perturbed"]
