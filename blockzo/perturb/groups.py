"""Groups: several evaluations of one model, each with weights moved its own way, run as one batch.

The forward runs once under `torch.vmap`; only what depends on a moved weight gets a group dimension, so masks, positions and
control flow on the inputs are the model's own. This is the inner and outer parallelism of P-RGE (arXiv 2409.15520) for any model
and full rank. What cannot be batched (control flow on activations, `.item()`, functions without a batching rule) runs one
evaluation after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from blockzo.noise import Noise
from blockzo.ops.params import whole_targets
from blockzo.ops.per_weight import PerWeight, with_scales
from blockzo.perturb import Index, Moves, PerturbedForward, batched, make_move
from blockzo.perturb.activations import Activations, group_losses, read_together
from blockzo.perturb.grouping import Grouping, Limits, MaxGroup
from blockzo.perturb.losses import evaluation_mode
from blockzo.perturb.outlived import Outlived


def run_groups(
    forward: Callable[[Any, PerturbedForward], Any],
    kept: Activations | None,
    index: Index,
    moves: Mapping[int, Moves],
    groups: int,
    barred: Mapping[int, str] | None = None,
    row_limits: Limits | None = None,
    measure: bool = False,
) -> tuple[Activations, PerturbedForward]:
    """Runs `forward(kept, mode)` for all groups of the moves (block -> move; for each block of the index one).

    Args:
        forward: takes what `kept` holds for one group (None where nothing is kept), and the mode it runs under.
        measure: of one group, the sizes of its operations; of several, what outlives them.

    Returns:
        What it returned, and the mode that counted.
    """
    if groups == 1:
        mode = PerturbedForward(index, moves, barred, 1, None, row_limits, measure)
        with mode:
            result = forward(None if kept is None else kept.tree(), mode)
        leaves, spec = _read(mode, result)
        return Activations(leaves, [False] * len(leaves), spec), mode
    found: list[Any] = []

    def body(group: Tensor) -> Tensor:
        level = batched.level_of(group)
        mode = PerturbedForward(index, moves, barred, groups, level, row_limits)
        mode.outlived = Outlived() if measure else None
        before = None
        if kept is not None:
            pairs = zip(kept.leaves, kept.own, strict=True)
            before = tree_unflatten([_for_groups(leaf, own, groups, level) for leaf, own in pairs], kept.spec)
        with mode:
            result = forward(before, mode)
        leaves, spec = _read(mode, result)
        lowered = [batched.lower(leaf, level) if isinstance(leaf, Tensor) else (leaf, False) for leaf in leaves]
        found.extend((Activations([leaf for leaf, _ in lowered], [own for _, own in lowered], spec), mode))
        return group

    with batched.quiet_fallbacks():
        torch.vmap(body)(torch.arange(groups))
    return found[0], found[1]


def _read(mode: PerturbedForward, result: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves of what a forward under the mode gave; a parameter or a view of one leaves the mode with its moved values."""
    leaves, spec = tree_flatten(result)
    return [mode.moved(leaf) for leaf in leaves], spec


def _for_groups(leaf: Any, own: bool, groups: int, level: int) -> Any:
    """What all groups share is given to each as its own too, for layers that work in place."""
    if not own and isinstance(leaf, Tensor) and leaf.is_floating_point():
        leaf, own = leaf.unsqueeze(0).expand(groups, *leaf.shape), True
    return batched.lift(leaf, level) if own else leaf


def perturbed_losses(
    model: nn.Module,
    noise: Noise,
    directions: Sequence[int],
    scales: Sequence[float],
    forward: Callable[[], Tensor],
    max_group: MaxGroup = "auto",
    per_weight: PerWeight | None = None,
    moved: str = "auto",
) -> Tensor:
    """Losses of a model under several moves of its weights, as many at once as memory allows; no weight is written.

    Args:
        model: any module; parameters with `requires_grad` are moved, under their canonical names. Dropout is off.
        noise: whose z; its seed is that of the step.
        directions: G of them; in evaluation g every weight is `w + scales[g] * z[directions[g]]`.
        scales: G of them.
        forward: calls the model and returns a tensor with one element.
        max_group: evaluations that run as one batch at most; "auto": by measured memory, and only where it is faster.
        per_weight: as of `blockzo.perturb_`.
        moved: as of `blockzo.perturbed`.

    Returns:
        float32 tensor [G] on the CPU.

    Raises:
        ValueError: lists of different lengths, an unsupported parameter, a loss of more than one element.
    """
    if len(directions) != len(scales) or not len(directions):
        raise ValueError(
            f"directions has {len(directions)} entries, scales {len(scales)}; expected one each, at least one"
        )
    triples = list(zip(range(len(directions)), directions, scales, strict=True))
    make_move(noise, directions, scales, moved)
    found = with_scales(whole_targets(model, "a perturbed forward"), per_weight)
    index = Index({0: found})
    device = found[0].tensor.device if found else torch.device("cpu")

    def run(part: Sequence[Any], limits: Limits | None, measure: bool) -> tuple[Activations, PerturbedForward]:
        _, named, sizes = zip(*part, strict=True)
        move = make_move(noise, named, sizes, moved)
        return run_groups(lambda *_: forward(), None, index, {0: move}, len(part), None, limits, measure)

    with evaluation_mode(model):
        each = Grouping(model, max_group, device).each(triples, run)
        ran = [([place for place, *_ in part], group_losses(result, len(part))) for part, result, _ in each]
    # evaluations that branch differently do not come in order
    places = [place for part, _ in ran for place in part]
    values = [loss for group in read_together([losses for _, losses in ran]) for loss in group]
    return torch.tensor([loss for _, loss in sorted(zip(places, values, strict=True))], dtype=torch.float32)
