"""What a step costs before it runs: forward FLOPs, runs of each block, kept activations, passes over the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from blockzo.blocks import Blocks
from blockzo.estimators import Method, default_blocks
from blockzo.evaluate import LossFunction, evaluation_mode, hugging_face_loss
from blockzo.ops.params import named_tensors
from blockzo.perturb import PerturbedForward


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
    """

    flops: float
    forwards_per_block: list[int]
    activation_bytes: int
    weight_reads: int
    weight_passes: float
    in_place_weight_passes: float
    block_flops: list[int]


def cost(
    model: nn.Module | Blocks,
    method: Method,
    batch_shape: Sequence[int] | None = None,
    *,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    max_group: int = 1,
) -> Cost:
    """Cost of one step of `method`; runs every block once, unmoved, to count it.

    Args:
        model: blocks, or a model, which is cut in half where the method needs two blocks.
        batch_shape: (sequences, tokens), for models that take `input_ids`; the logits of all positions are counted then.
        max_group: evaluations that run as one batch.
        batch, loss_fn: a real batch and the loss that training uses; instead of `batch_shape`.
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

    block_flops, kept_bytes = measure_blocks(blocks, forward)
    sizes, held = [0] * len(blocks), [0] * len(blocks)
    for name, tensor in named_tensors(blocks.model).items():
        sizes[blocks.layout[name]] += tensor.numel()
    for name, tensor in named_tensors(blocks.model, trainable_only=False).items():
        held[blocks.places[name]] += tensor.numel() * tensor.element_size()
    return Cost(
        flops=tree.flops(block_flops),
        forwards_per_block=tree.runs,
        activation_bytes=tree.kept_bytes(kept_bytes, max_group),
        weight_reads=sum(r * h for r, h in zip(tree.weight_reads(max_group), held, strict=True)),
        weight_passes=1.0,
        in_place_weight_passes=tree.in_place_passes(sizes),
        block_flops=block_flops,
    )


def measure_blocks(blocks: Blocks, forward: Callable[[], Any]) -> tuple[list[int], list[int]]:
    """Forward FLOPs of each block, and bytes of the activations that each leaves, from one run of every block."""
    flops, sizes = [], []
    kept: Any = None
    with evaluation_mode(blocks.model):
        for block in range(len(blocks)):
            with PerturbedForward() as mode:
                kept = blocks.run(forward, block, block + 1, kept)
            flops.append(mode.flops)
            tensors = [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor)]
            sizes.append(sum(t.numel() * t.element_size() for t in tensors))
    return flops, sizes


def measure_seconds(blocks: Blocks, forward: Callable[[], Any], rounds: int = 3) -> list[float]:
    """Seconds of one run of each block, unmoved, on the activations before it; the shortest of `rounds`."""
    best = [math.inf] * len(blocks)
    with evaluation_mode(blocks.model):
        for _ in range(rounds):
            kept: Any = None
            for block in range(len(blocks)):
                start = time.perf_counter()
                kept = blocks.run(forward, block, block + 1, kept)
                best[block] = min(best[block], time.perf_counter() - start)
    return best
