"""Micro-batches: one step on a batch that is evaluated in parts, with the memory of one part.

Each leaf of the evaluation tree has one loss, the weighted mean over the parts; scalars follow from these losses, so a step on
parts is the step on the whole batch for every method, FZOO's normalisation included. Sums are exact (`math.fsum` of exact
products), so the result does not depend on the order of parts or on how they are spread over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from blockzo.perturb.losses import as_tensor

Weight = Callable[[Any], float]
"""Batch -> the number that its loss is a mean over."""
IGNORED = -100
"""Label of positions that torch's cross entropy leaves out."""
_DECODERS = (
    "Bart BigBirdPegasus Blenderbot BlenderbotSmall CpmAnt MBart Marian Musicgen MusicgenMelody Mvp PLBart Pegasus ProphetNet "
    "TrOCR Whisper"
)
LABEL_IN_PLACE = {f"{name}ForCausalLM" for name in _DECODERS.split()}
LABEL_IN_PLACE |= {"FlaubertWithLMHeadModel", "XLMWithLMHeadModel", "XLNetLMHeadModel"}
"""Classes of transformers that are named as those that compare each position with the label after it, and take the one at it."""


@dataclass(frozen=True)
class MicroBatches:
    """Batches of one step, said explicitly; `ZO.step` takes a plain list too.

    Attributes:
        batches: one loss each.
        weights: of each batch's loss; None: what its loss is a mean over (label tokens or rows).
    """

    batches: Sequence[Any]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not len(self.batches):
            raise ValueError("MicroBatches has no batch; expected one at least")
        if self.weights is not None:
            if len(self.weights) != len(self.batches):
                raise ValueError(f"{len(self.weights)} weights for {len(self.batches)} batches; expected one each")
            for weight in self.weights:
                _check(weight)


@dataclass(frozen=True)
class Part:
    """One micro-batch and the weight of its loss."""

    batch: Any
    weight: float


def parts_of(batch: Any, weight: Weight) -> list[Part]:
    """The parts of a step; those of weight 0 (no row, no label token) have no loss and are left out.

    Raises:
        ValueError: all weights are 0.
    """
    if not isinstance(batch, MicroBatches):
        # a single loss stands for itself, whatever its weight
        return [Part(batch, 1.0)]
    weights = batch.weights or [_check(weight(one)) for one in batch.batches]
    found = [Part(one, float(w)) for one, w in zip(batch.batches, weights, strict=True) if w]
    if not found:
        raise ValueError(
            f"all {len(batch.batches)} micro-batches have the weight 0; expected a row or a label token in one"
        )
    return found


def _check(weight: float) -> float:
    value = float(weight)
    if not math.isfinite(value) or value < 0:
        raise ValueError(
            f"the weight of a batch is {weight}; expected a number that is not negative: its rows or label tokens"
        )
    return value


def loss_terms(model: nn.Module, batch: Any) -> float:
    """What the mean loss of a batch is a mean over, as Hugging Face models take it: label tokens where `labels` holds one a token
    (those that a causal model predicts, without `-100`), else rows: the first dimension of the first tensor.

    Raises:
        ValueError: the batch holds no tensor with a dimension.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, Tensor) and labels.dim() > 1 and not labels.is_floating_point():
        counted = labels[..., 1:] if _predicts_next(model) else labels
        return int((counted != IGNORED).sum())
    return rows_in(batch)


def rows_in(batch: Any) -> int:
    """Examples of a batch: the first dimension of its first tensor.

    Raises:
        ValueError: the batch holds no tensor with a dimension.
    """
    for leaf in tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return int(leaf.shape[0])
    raise ValueError(
        "the batch holds no tensor with a dimension; pass rows_of=, which says what its loss is a mean over"
    )


def _predicts_next(model: nn.Module) -> bool:
    """Whether the model's own loss compares each position with the label after it."""
    base = model.get_base_model() if callable(getattr(model, "get_base_model", None)) else model  # type: ignore[operator]
    config = getattr(base, "config", None)
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, getattr(config, "text_config", None))):
        return False
    kinds = {kind.__name__ for kind in type(base).__mro__}
    if kinds & LABEL_IN_PLACE:
        return False
    # a decoder that sees images or hears has the other name
    shifted = getattr(base, "loss_type", None) in ("ForCausalLM", "ForConditionalGeneration")
    return shifted or any("CausalLM" in name or "LMHead" in name for name in kinds)


Sum = tuple[float, float]
"""A sum to twice the precision of float64: its rounded value and what was rounded away.

A sum of more than 106 bits, as of losses of thousands and of 1e-38, may differ in the last place with the number of ranks.
"""


def weighted_sums(losses: Sequence[Sequence[float]], weights: Sequence[float]) -> list[Sum]:
    """For every leaf, the sum over parts of weight * loss.

    Args:
        losses: parts x leaves.
    """
    result = []
    for column in zip(*losses, strict=True):
        terms = [weight * loss for weight, loss in zip(weights, column, strict=True)]
        rounded = math.fsum(terms)
        rest = math.fsum([*terms, -rounded]) if math.isfinite(rounded) else 0.0
        result.append((rounded, rest))
    return result


def mean_losses(losses: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Weighted mean over parts of every leaf; of a single part its own losses."""
    if len(losses) == 1:
        return list(losses[0])
    total = math.fsum(weights)
    return [rounded / total for rounded, _ in weighted_sums(losses, weights)]


def as_one_loss(forwards: Sequence[Callable[[], Any]], weights: Sequence[float]) -> Callable[[], Any]:
    """One loss function that runs all parts one after the other."""
    if len(forwards) == 1:
        return forwards[0]
    total = math.fsum(weights)

    def forward() -> Tensor:
        return torch.stack([as_tensor(f()).double() * w for f, w in zip(forwards, weights, strict=True)]).sum() / total

    return forward


def meaning_of_list(batch: list[Any], loss: Callable[[Any], Any]) -> bool:
    """Whether a list is micro-batches, by trying what the loss function takes: an entry, or the list itself as one batch.

    Raises:
        ValueError: it takes both, or neither.
    """
    failures: list[Exception] = []
    for one in (batch[0], batch):
        try:
            loss(one)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            failures.append(error)
            whole = one is batch
    if len(failures) == 1:
        return whole
    if not failures:
        raise ValueError(
            f"the batch is a list of {len(batch)} and loss_fn takes both its entries and the list; say which is meant: "
            "pass blockzo.MicroBatches(list) for micro-batches, or tuple(list) for one batch"
        )
    raise ValueError(
        f"the batch is a list of {len(batch)} and loss_fn takes neither an entry ({type(failures[0]).__name__}: {failures[0]}) "
        f"nor the list ({type(failures[1]).__name__}: {failures[1]})"
    ) from failures[0]
