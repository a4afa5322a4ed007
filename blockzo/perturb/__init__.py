"""A model whose weights are moved without being written.

`perturbed` is what users hold; `PerturbedForward` (mode.py) is the mode behind it, `values.py` the moved values that it hands
out, `parameters.py` what it moves, `moves.py` how, `functions.py` and `kinds.py` what it knows of torch's functions,
`small.py` the norm weights and biases, `wide.py` products of 16 bits that are not rounded, `batched.py` several groups at once,
`transforms.py` torch.func in a model's own code, `traced.py` what torch.compile sees of it, `views.py` views that it would miss.
Checks: `hidden.py` tries whether weights are read past the mode, `materialised.py` writes them. Many evaluations: `groups.py`
runs them together, `grouping.py` says how many, `causes.py` why not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from blockzo.contract import check_moved
from blockzo.noise import Noise
from blockzo.ops.params import check_finite, whole_targets
from blockzo.ops.per_weight import PerWeight, with_scales
from blockzo.perturb.hidden import check_reads, hidden_reads
from blockzo.perturb.kinds import is_fact
from blockzo.perturb.materialised import materialised
from blockzo.perturb.mode import PerturbedForward
from blockzo.perturb.moves import Move, Moves, PackedMove
from blockzo.perturb.parameters import Index


def perturbed(
    model: nn.Module,
    noise: Noise,
    directions: Sequence[int] = (0,),
    scales: Sequence[float] = (1e-3,),
    per_weight: PerWeight | None = None,
    moved: str = "auto",
) -> PerturbedForward:
    """Inside the block, forward passes of `model` see `w + scale * z` for every trainable parameter; no weight is written.

    Args:
        model: any module; parameters with `requires_grad` are moved, under their canonical names.
        noise: whose z; its seed is that of the step.
        directions: one. For several at once: `blockzo.perturbed_losses`.
        scales: one, of that direction.
        per_weight: as of `blockzo.perturb_`. Linear layers with scales are moved by panels, which takes longer than without.
        moved: how linear layers multiply moved 16-bit weights: "float32" (the move is not rounded), "rounded" (once to the
            weights' dtype, as a move in place leaves them), "auto" (what is fastest here); docs/perturbed.md.

    Returns:
        A context manager without gradients, the mode; its `flops` counts what ran inside. A function that is to be compiled
        takes it as an argument and enters it, under `torch.no_grad()` (docs/gpu.md).

    Raises:
        ValueError: a parameter is unsupported, or the model writes a parameter or reads its memory by address.
    """
    if torch.compiler.is_dynamo_compiling():
        raise ValueError(
            "blockzo.perturbed was called in a compiled function; call it before and hand over what it returns"
        )
    if len(directions) != 1 or len(scales) != 1:
        raise ValueError(
            f"directions has {len(directions)} entries and scales {len(scales)}; a forward inside `perturbed` sees one: "
            "pass one of each, or use blockzo.perturbed_losses(model, noise, directions, scales, forward)"
        )
    move = make_move(noise, directions, scales, moved)
    found = with_scales(whole_targets(model, "a perturbed forward"), per_weight)
    mode = _WithoutGradients(Index({0: found}, model), {0: move})
    # noise of a low rank or with scales has no kernels that read tables: a compiled forward refuses it
    for name, (_, device) in mode.index.tables.items() if noise.rank is None and not per_weight else ():
        step = move.packed(device)
        mode.tables[name] = step.line, step.terms, step.distribution
    mode.linear_moved = moved
    return mode


class _WithoutGradients(PerturbedForward):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._gradients: list[bool] = []

    def __enter__(self) -> PerturbedForward:
        if not torch.compiler.is_dynamo_compiling():
            self._gradients.append(torch.is_grad_enabled())
            torch.set_grad_enabled(False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            super().__exit__(*error)
            return
        # whoever enters it may catch what is raised inside
        self._caught = None
        super().__exit__(*error)
        torch.set_grad_enabled(self._gradients.pop())


def make_move(noise: Noise, directions: Sequence[int], scales: Sequence[float], moved: str = "auto") -> Move:
    """Checked; one group for each direction and scale."""
    check_moved(moved)
    for scale in scales:
        check_finite("scale", float(scale))
    return Move(noise, tuple(map(int, directions)), tuple(map(float, scales)), moved)


__all__ = [
    "Index",
    "Move",
    "Moves",
    "PackedMove",
    "PerturbedForward",
    "check_reads",
    "hidden_reads",
    "is_fact",
    "make_move",
    "materialised",
    "perturbed",
]
