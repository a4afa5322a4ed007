"""What a step costs before it runs: forward FLOPs, runs of each block, kept activations, passes over the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from blockzo.methods import tally
from blockzo.methods.base import Method
from blockzo.ops.params import named_tensors
from blockzo.optim.cutting import default_blocks
from blockzo.optim.reuse import Reuse, UnmovedTrial
from blockzo.perturb import PerturbedForward
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import LossFunction, evaluation_mode, hugging_face_loss
from blockzo.perturb.passes import kept_bytes

LEAST = 0.2
"""What a block without products costs (a pooling, a last norm, the rows of two label words), in layers: 0.19 to 0.27 of a layer's
seconds on MiniLM-L6, SmolLM2-135M and stories15M, batches of 16, one CPU thread."""


@dataclass(frozen=True)
class Cost:
    """One step.

    Attributes:
        flops: forward FLOPs (matrix products, attention, convolutions).
        forwards_per_block: how many times each block runs.
        activation_bytes: most that is kept between blocks at once, walked depth first.
        weight_reads: bytes of weights read to evaluate all losses, each batch of up to `max_group` evaluations reading them once
            (embeddings are counted whole, though only the rows in use are read).
        weight_passes: writes of all weights: 1 (the update) for perturbed evaluation.
        in_place_weight_passes: the same for `evaluate="in_place"`, the last restore folded into the update.
        block_flops: forward FLOPs of one run of each block.
        whole: None; or why every loss runs the whole model, nothing being kept (`blockzo.optim.reuse`).
    """

    flops: float
    forwards_per_block: list[int]
    activation_bytes: int
    weight_reads: int
    weight_passes: float
    in_place_weight_passes: float
    block_flops: list[int]
    whole: str | None = None


def cost(
    model: nn.Module | Blocks,
    method: Method,
    batch_shape: Sequence[int] | None = None,
    *,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    max_group: int = 1,
) -> Cost:
    """Cost of one step of `method`; runs every block once, unmoved, to count it, and tries whether the loss may continue from
    kept activations (`Reuse.check`).

    Args:
        model: blocks, or a model, which is cut in half where the method needs two blocks.
        batch_shape: (sequences, tokens), for models that take `input_ids`; the logits of all positions are counted then.
        max_group: evaluations that run as one batch.
        batch: a real one, instead of `batch_shape`.
        loss_fn: the loss that training uses.
    """
    blocks = model if isinstance(model, Blocks) else default_blocks(model, method)
    tree = method.tree(len(blocks))
    device = next(blocks.model.parameters()).device
    if batch is None:
        if batch_shape is None or len(batch_shape) != 2:
            raise ValueError(f"batch_shape is {batch_shape}; expected (sequences, tokens), or pass batch= and loss_fn=")
        ids = torch.zeros(tuple(batch_shape), dtype=torch.int64, device=device)

        def forward() -> Any:
            return blocks.model(input_ids=ids)
    else:

        def forward() -> Any:
            return (loss_fn or hugging_face_loss)(blocks.model, batch)

    reuse = tried(blocks, forward)
    tree = reuse.tree(tree)
    block_flops, kept_bytes = (
        measure_blocks(blocks, forward) if reuse.reason is None else measure_whole(blocks, forward)
    )
    sizes, held = [0] * len(blocks), [0] * len(blocks)
    for name, tensor in named_tensors(blocks.model).items():
        sizes[blocks.layout[name]] += tensor.numel()
    for name, tensor in named_tensors(blocks.model, trainable_only=False).items():
        held[blocks.places[name]] += tensor.numel() * tensor.element_size()
    return Cost(
        flops=tree.flops(block_flops),
        forwards_per_block=tree.runs,
        activation_bytes=tally.kept_bytes(tree, kept_bytes, max_group),
        weight_reads=sum(r * h for r, h in zip(tally.weight_reads(tree, max_group), held, strict=True)),
        weight_passes=1.0,
        in_place_weight_passes=tally.in_place_passes(tree, sizes),
        block_flops=block_flops,
        whole=reuse.reason,
    )


def tried(blocks: Blocks, forward: Callable[[], Any]) -> Reuse:
    """Whether evaluations may continue from kept activations, on unmoved weights; not tried on the device "meta"."""
    reuse = Reuse(blocks)
    if len(blocks) > 1:
        with evaluation_mode(blocks.model):
            if next(blocks.model.parameters()).device.type == "meta":
                # after which call of a layer a block ends; without it the first count runs on past the end
                blocks.run_to_loss(forward)
            else:
                reuse.check(UnmovedTrial(blocks, forward))
    return reuse


def measure_blocks(blocks: Blocks, forward: Callable[[], Any]) -> tuple[list[int], list[int]]:
    """Forward FLOPs of each block, and bytes of the activations that each leaves, from one run of every block."""
    flops, sizes = [], []
    kept: Any = None
    with evaluation_mode(blocks.model):
        for block in range(len(blocks)):
            with PerturbedForward() as mode:
                kept = blocks.run(forward, block, block + 1, kept)
            flops.append(mode.flops)
            sizes.append(kept_bytes(kept) if block + 1 < len(blocks) else 0)
    return flops, sizes


def measure_whole(blocks: Blocks, forward: Callable[[], Any]) -> tuple[list[int], list[int]]:
    """The same of one run of the whole model, which keeps nothing; each block from the start of its first layer on."""
    flops = [0] * len(blocks)
    block, before = 0, 0

    def begin(number: int) -> None:
        nonlocal block, before
        flops[block] += mode.flops - before
        block, before = number, mode.flops

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        begin(len(blocks) - 1)

    def begun(number: int) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: begin(max(b for b, start in enumerate(blocks.starts) if start <= number))

    handles = [layer.register_forward_pre_hook(begun(number)) for number, layer in enumerate(blocks.layers)]
    handles += [blocks.layers[-1].register_forward_hook(ended)] if blocks.starts[-1] == len(blocks.layers) else []
    try:
        with evaluation_mode(blocks.model), PerturbedForward() as mode:
            blocks.run_whole(forward)
        begin(0)
    finally:
        for handle in handles:
            handle.remove()
    return flops, [0] * len(blocks)


def planning_costs(
    costs: Sequence[float] | Literal["seconds"] | None, blocks: Blocks, forward: Callable[[], Any], whole: bool
) -> list[float]:
    """Of one run of each block, as a planner is told them (`Auto.costs`).

    Args:
        whole: nothing can be kept, so that every loss costs the whole model.
    """
    if costs == "seconds":
        return measure_seconds(blocks, forward, whole=whole)
    return counted_costs(blocks, forward, whole) if costs is None else [float(cost) for cost in costs]


def counted_costs(blocks: Blocks, forward: Callable[[], Any], whole: bool = False) -> list[float]:
    """Parts of a forward's FLOPs, `LEAST` of a layer's at least, which follow from the model and the batch alone."""
    flops = [0] if whole else measure_blocks(blocks, forward)[0]
    total = sum(flops)
    if total == 0:
        return [1 / len(blocks)] * len(blocks)
    least = LEAST / max(len(blocks.layers), 1)
    return [max(each / total, least) for each in flops]


def measure_seconds(blocks: Blocks, forward: Callable[[], Any], rounds: int = 3, whole: bool = False) -> list[float]:
    """Seconds of one run of each block, unmoved, on the activations before it; the shortest of `rounds`.

    Args:
        whole: nothing can be kept; equal parts of the time of the whole model.
    """
    best = [math.inf] * len(blocks)
    if whole:
        for _ in range(rounds):
            start = time.perf_counter()
            with evaluation_mode(blocks.model):
                blocks.run_whole(forward)
            best = [min(b, (time.perf_counter() - start) / len(blocks)) for b in best]
        return best
    with evaluation_mode(blocks.model):
        for _ in range(rounds):
            kept: Any = None
            for block in range(len(blocks)):
                start = time.perf_counter()
                kept = blocks.run(forward, block, block + 1, kept)
                best[block] = min(best[block], time.perf_counter() - start)
    return best
