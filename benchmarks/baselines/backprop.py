"""Backpropagation: AdamW (Loshchilov & Hutter, arXiv 1711.05101) on all weights or on LoRA matrices (Hu et al., arXiv
2106.09685), activations kept or made again (Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.baselines.noise import Loss

RANK, ALPHA = 8, 16


class Backprop:
    """One step: forward, backward, AdamW.

    Args:
        checkpointing: keep what layers are given, and run each again in the backward pass (models of transformers).
        optimizer: "AdamW" or "SGD".
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        lr: float,
        checkpointing: bool = False,
        optimizer: str = "AdamW",
        weight_decay: float = 0.0,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        if checkpointing:
            # layers are run again in training mode alone; the models here have no dropout then
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
                elif isinstance(getattr(module, "dropout", None), float):
                    module.dropout = 0.0  # type: ignore[assignment]
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            model.train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        settings = {"lr": lr, "weight_decay": weight_decay}
        self.optimizer: torch.optim.Optimizer = getattr(torch.optim, optimizer)(self.parameters, **settings)

    def step(self, batch: Any) -> float:
        """The loss. Raises ValueError where it is not finite; nothing is updated then."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self.loss_fn(self.model, batch)
            loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value}; expected a finite number: lower lr")
        self.optimizer.step()
        return value

    def message_bytes(self) -> int:
        """What a client of federated averaging sends: every weight it trains."""
        return sum(p.numel() * p.element_size() for p in self.parameters)


def add_lora(model: nn.Module, targets: Sequence[str]) -> None:
    """Puts LoRA matrices of rank 8 beside the layers whose names end so, in place; all else is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets)), model)
