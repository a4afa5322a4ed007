"""FedAvg (McMahan et al., arXiv 1602.05629), the first-order baseline: clients backpropagate, all weights travel both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockzo.federated.client.worker import BatchOf, Weights
from blockzo.finetune.errors import UserError
from blockzo.ops.params import named_tensors
from blockzo.perturb import PerturbedForward
from blockzo.perturb.losses import LossFunction

BACKWARD = 2
"""FLOPs of a backward pass over those of its forward (Kaplan et al., arXiv 2001.08361, 2.1); at most, with frozen layers."""


class FedAvg:
    """Rounds of local stochastic gradient descent, averaged by the rows that each client saw.

    Attributes: `flops` so far, of forward and backward passes; `bytes_each_way`: what one client loads, and sends, in a round.
    """

    def __init__(self, weights: Weights, loss_fn: LossFunction, batches: Sequence[BatchOf], local_steps: int) -> None:
        self.weights, self.loss_fn, self.batches, self.local_steps = weights, loss_fn, batches, local_steps
        self.flops = 0.0
        self._counts: dict[tuple[torch.Size, ...], int] = {}
        own = named_tensors(weights.blocks.model)
        self.bytes_each_way = sum(t.numel() * t.element_size() for t in own.values())

    def round(self, number: int, chosen: Sequence[int], lr: float) -> tuple[float, int]:
        """One round with the clients `chosen`; their mean loss, and the rows they saw."""
        model = self.weights.blocks.model
        own = named_tensors(model)
        begin = {name: tensor.detach().clone() for name, tensor in own.items()}
        total: dict[str, Tensor] = {name: torch.zeros_like(t, dtype=torch.float32) for name, t in begin.items()}
        rows, losses = 0, 0.0
        for client in chosen:
            self.weights.put(begin)
            seen = 0
            for step in range(self.local_steps):
                batch, count = self.batches[client](number, step)
                loss = self._step(batch, lr)
                losses += loss * count
                seen += count
            for name, tensor in own.items():
                total[name] += (tensor.detach() - begin[name]).float() * seen
            rows += seen
        if not math.isfinite(losses):
            self.weights.put(begin)
            raise UserError(f"round {number + 1}: the loss is {losses / rows}; lower --lr")
        self.weights.put({name: (begin[name].float() + total[name] / rows).to(begin[name].dtype) for name in begin})
        return losses / rows, rows

    def _step(self, batch: object, lr: float) -> float:
        model = self.weights.blocks.model
        forward = self._forward_flops(batch)
        with torch.enable_grad():
            loss = self.loss_fn(model, batch)
            loss.backward()
        self.flops += (1 + BACKWARD) * forward
        with torch.no_grad():
            for tensor in named_tensors(model).values():
                if tensor.grad is not None:
                    tensor.sub_(tensor.grad, alpha=lr)
                    tensor.grad = None
        return float(loss.detach())

    def _forward_flops(self, batch: object) -> int:
        shapes = tuple(leaf.shape for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        if shapes not in self._counts:
            with torch.no_grad(), PerturbedForward() as counted:
                self.loss_fn(self.weights.blocks.model, batch)
            self._counts[shapes] = counted.flops
        return self._counts[shapes]
