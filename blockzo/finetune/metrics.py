"""Held-out scores: accuracy, accuracy with a calibrated threshold, area under the ROC curve, loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockzo.finetune.data.order import by_length
from blockzo.finetune.data.prompts import Encoded
from blockzo.finetune.errors import UserError
from blockzo.finetune.scoring import Scorer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HeldOutScores:
    """Held-out figures of one model; those that a task does not have are None.

    `calibrated_accuracy` (two classes): the decision threshold on the difference of the two logits is its median over the
    held-out rows, which uses no labels. A zero-shot model gains much of its "improvement" from such a shift alone, so a
    fine-tuned model should be compared with this figure, too.
    """

    rows: int
    loss: float
    accuracy: float | None = None
    calibrated_accuracy: float | None = None
    auc: float | None = None
    perplexity: float | None = None

    def as_dict(self) -> dict[str, float | int]:
        return {key: value for key, value in vars(self).items() if value is not None}


@torch.no_grad()
def measure(
    model: nn.Module,
    scorer: Scorer,
    data: Encoded,
    rows: Sequence[int],
    batch: int = 32,
    progress: Progress = lambda done, total: None,
) -> Tensor:
    """What the model says of some rows, in batches of similar length.

    Args:
        progress: called with the rows done and their total before every batch; an exception from it ends the evaluation.

    Returns:
        float32 [N, C] logits in the order of `rows`; for language modelling [N, 2]: sum of the row's next-token losses in
        nats, and how many tokens they are.

    Raises:
        UserError: a value is not finite.
    """
    result: Tensor | None = None
    done = 0
    for group in by_length([len(data.ids[row]) for row in rows], batch):
        progress(done, len(rows))
        inputs = scorer.batch(data, [rows[i] for i in group])
        found = scorer.token_losses(model, inputs) if scorer.kind == "lm" else scorer.logits(model, inputs)
        if result is None:
            result = torch.zeros(len(rows), found.shape[1])
        result[torch.tensor(group)] = found
        done += len(group)
    progress(done, len(rows))
    if result is None:
        raise UserError("there are no rows to evaluate; expected at least one")
    if not bool(torch.isfinite(result).all()):
        raise UserError(
            "the model's held-out scores are not finite: its weights or activations overflow; use --dtype float32 or "
            "bfloat16 instead of float16, or a lower --lr"
        )
    return result


def scores(kind: str, values: Tensor, labels: Sequence[int]) -> HeldOutScores:
    """Scores from what `measure` gave (`values`) and the classes of the same rows."""
    if kind == "lm":
        mean = float(values[:, 0].double().sum() / values[:, 1].double().sum())
        return HeldOutScores(rows=len(values), loss=mean, perplexity=math.exp(min(mean, 700.0)))
    target = torch.tensor(list(labels), dtype=torch.int64)
    calibrated = auc = None
    if values.shape[1] == 2:
        difference = values[:, 1].double() - values[:, 0].double()
        positive = target == 1
        calibrated = float(((difference > difference.median()) == positive).double().mean())
        area = area_under_curve(difference, positive)
        auc = None if math.isnan(area) else area
    return HeldOutScores(
        rows=len(values),
        loss=float(F.cross_entropy(values, target)),
        accuracy=float((values.argmax(1) == target).double().mean()),
        calibrated_accuracy=calibrated,
        auc=auc,
    )


def area_under_curve(difference: Tensor, positive: Tensor) -> float:
    """Probability that a positive row has the larger `difference` ([N] floats), ties counted half; nan without both classes."""
    _, place, counts = torch.unique(difference.double(), return_inverse=True, return_counts=True)
    middle_rank = counts.cumsum(0) - (counts - 1) / 2
    ranks = middle_rank[place]
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if ones == 0 or zeros == 0:
        return math.nan
    return (float(ranks[positive].sum()) - ones * (ones + 1) / 2) / (ones * zeros)
