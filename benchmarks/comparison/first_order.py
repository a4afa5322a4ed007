"""Backpropagation beside the zeroth-order methods: AdamW, on all weights or on LoRA's.

A step is one forward and one backward pass; its FLOPs are those of both, counted by torch's FlopCounterMode. What that does not
see of a forward (attention on a CPU) is added three times, for a backward pass costs twice its forward. Dropout is off, as it
is for every method here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines.backprop import Backprop, add_lora
from benchmarks.comparison.counted import Counted
from benchmarks.comparison.problems import Problem, plain_flops

PROJECTIONS = ("q_proj", "v_proj", "query", "value", "q", "v")
"""Of queries and values, where Hu et al. (arXiv 2106.09685) put their adapters, as Llama, BERT and MPNet name them."""


class AdamW:
    """AdamW at a constant rate, without weight decay."""

    def __init__(self, problem: Problem, lr: float) -> None:
        self.problem = problem
        self.backprop = Backprop(problem.model, problem.loss_fn, lr)
        self.flops: dict[tuple[int, ...], int] = {}

    def step(self, batch: Any) -> Counted:
        """Raises ValueError where the loss is not finite; nothing is updated then."""
        shape = tuple(batch["ids"].shape)
        if shape in self.flops:
            self.backprop.step(batch)
        else:
            with torch.no_grad(), FlopCounterMode(display=False) as forward:
                self.problem.loss_fn(self.problem.model, batch)
            with FlopCounterMode(display=False) as both:
                self.backprop.step(batch)
            unseen = plain_flops(self.problem, batch) - forward.get_total_flops()
            self.flops[shape] = both.get_total_flops() + 3 * unseen
        return Counted(self.flops[shape], 1)


def add_adapters(problem: Problem, seed: int) -> None:
    """Puts LoRA adapters into the problem's model, in place; all else is frozen, but a classification head."""
    model = problem.model
    body = getattr(model, "encoder", model)
    torch.manual_seed(seed)
    add_lora(body, PROJECTIONS)
    head = getattr(model, "head", None) if body is not model else None
    if isinstance(head, nn.Module):
        head.requires_grad_(True)
