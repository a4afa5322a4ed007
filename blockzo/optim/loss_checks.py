"""Is a loss one that can be trained on? Looked at before the first step, and while some weights are not used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.ops.params import named_tensors, whole_targets
from blockzo.optim.evaluation import Evaluation
from blockzo.optim.repeatable import check_repeatable
from blockzo.perturb import check_reads
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import LossFunction, as_tensor, evaluation_mode


class LossChecks:
    """Of one loss on one model.

    Attributes:
        reads_at: the step before which it is tried again whether the loss reads weights that are not moved; None: never again.
    """

    def __init__(self, blocks: Blocks, loss_fn: LossFunction) -> None:
        self.blocks, self.loss_fn = blocks, loss_fn
        self.reads_at: int | None = 0
        self._used = self._repeats = False

    def repeats(self, batch: Any, in_place: bool = False) -> None:
        """At the first step: is the loss the same when it is evaluated again?

        Args:
            in_place: it may write weights.

        Raises:
            ValueError: it is not (`NotRepeatable`), or writes weights; no weight has changed, unless it wrote where none can
                watch it (NumPy). Or it puts other parameters in the place of those of the model.
        """
        if self._repeats:
            return
        model = self.blocks.model
        with evaluation_mode(model), _none_replaced(model), nullcontext() if in_place else _none_written(model):
            check_repeatable(
                lambda: _number(self.blocks.run_whole(lambda: self.loss_fn(model, batch))),
                model,
                batch=batch,
                writes=in_place,
            )
        self._repeats = True

    def reads(self, batch: Any, step: int) -> None:
        """Does the loss read weights that are not moved? Tried at the first step, and at 1, 2, 4, ... while some are unused.

        Raises:
            ValueError: it does; no weight has changed.
        """
        if self.reads_at is None or step < self.reads_at:
            return
        model = self.blocks.model
        targets = whole_targets(model, "a perturbed forward")
        with evaluation_mode(model):
            check_reads(targets, lambda: self.loss_fn(model, batch))
        self.reads_at = max(1, 2 * step)

    def used(self, found: Evaluation, in_place: bool) -> None:
        """Warns once of trainable parameters that an evaluation did not use."""
        if self._used and self.reads_at is None:
            return
        unused = [name for name, tensor in named_tensors(self.blocks.model).items() if id(tensor) not in found.used]
        if not unused or in_place:
            self.reads_at = None
        first, self._used = not self._used, True
        if unused and first:
            warnings.warn(
                f"{len(unused)} trainable parameters are not used by the loss ({', '.join(unused[:3])}"
                f"{', ...' if len(unused) > 3 else ''}); updates would only add noise to them: freeze them with "
                "requires_grad_(False)",
                stacklevel=5,
            )


@contextmanager
def _none_replaced(model: nn.Module) -> Iterator[None]:
    """Raises ValueError where evaluations inside put another object in the place of a trainable parameter."""

    def parameters() -> dict[str, nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    before = parameters()
    try:
        yield
    finally:
        now = parameters()
        changed = [name for name, parameter in before.items() if now.get(name) is not parameter]
        if changed:
            raise ValueError(
                f"the loss puts another tensor in the place of parameter {', '.join(map(repr, changed[:3]))}"
                f"{', ...' if len(changed) > 3 else ''} of the model; expected parameters that stay those that are trained: "
                "compute with another tensor, and leave the parameter as it is"
            )


@contextmanager
def _none_written(model: nn.Module) -> Iterator[None]:
    """Raises ValueError where evaluations inside change a trainable parameter by its memory, past all torch functions."""
    before = _sums_of_bits(model)
    try:
        yield
    finally:
        now = _sums_of_bits(model)
        written = [name for name, value in before.items() if now.get(name, value) != value]
        if written:
            raise ValueError(
                f"the loss writes parameter {', '.join(map(repr, written[:3]))}{', ...' if len(written) > 3 else ''} of the "
                "model past torch's functions (through an array of NumPy, DLPack or an address); expected weights that the step "
                "alone writes: let it write a copy. It has written them already, so load the weights again. The step was not "
                "applied"
            )


def _sums_of_bits(model: nn.Module) -> dict[str, int]:
    """Of plain tensors, at the speed of memory: a digest takes ten times as long."""
    found = {}
    for name, tensor in named_tensors(model).items():
        if type(tensor.data) is not Tensor or tensor.layout is not torch.strided or tensor.is_meta:
            continue
        raw = tensor.detach().reshape(-1).view(torch.uint8)
        raw = raw.clone() if raw.data_ptr() % 8 else raw
        whole = raw.numel() // 8 * 8
        found[name] = int(raw[:whole].view(torch.int64).sum()) + int(raw[whole:].sum())
    return found


def _number(loss: Any) -> Any:
    """What can be compared of it, of a loss an example their mean; what is no loss is refused where it is read."""
    loss = as_tensor(loss)
    return loss.double().mean() if isinstance(loss, Tensor) and loss.is_floating_point() and loss.numel() else math.nan
