"""Held-out scores: accuracy, accuracy with a calibrated threshold, area under the ROC curve, loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockzo.finetune.data.order import by_length
from blockzo.finetune.data.prompts import Encoded
from blockzo.finetune.errors import UserError
from blockzo.finetune.scoring import LANGUAGE, Scorer

Progress = Callable[[int, int], None]
Figure = Callable[[Tensor, Tensor], float]
"""([N, C] logits, [N] classes) -> a number."""


@dataclass(frozen=True)
class HeldOutScores:
    """Held-out figures of one model; those that a task does not have are None.

    `calibrated_accuracy`: of two classes, the decision threshold on the difference of the two logits is its median over the
    held-out rows; of more, every class's log-probability is taken less its mean over those rows (batch calibration, Zhou et
    al., arXiv 2309.17249). Neither uses labels. A zero-shot model gains much of its "improvement" from such a shift alone, so a
    fine-tuned model should be compared with this figure, too.
    """

    rows: int
    loss: float
    accuracy: float | None = None
    calibrated_accuracy: float | None = None
    auc: float | None = None
    perplexity: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """Those that the task asks for beside."""

    def as_dict(self) -> dict[str, float | int]:
        common = {key: value for key, value in vars(self).items() if key != "figures" and value is not None}
        return {**common, **self.figures}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeldOutScores:
        """What `as_dict` gave."""
        common = {f.name for f in fields(cls)}
        figures = {name: value for name, value in values.items() if name not in common}
        return cls(**{name: value for name, value in values.items() if name in common}, figures=figures)


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
        nats, and how many tokens they are; after these, where answers are written, a column for each figure.

    Raises:
        UserError: a value is not finite.
    """
    result: Tensor | None = None
    done = 0
    for group in by_length([len(data.ids[row]) for row in rows], batch):
        progress(done, len(rows))
        found = scorer.measured(model, data, [rows[i] for i in group])
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


def scores(kind: str, values: Tensor, labels: Sequence[int], figures: Sequence[str] = ()) -> HeldOutScores:
    """Scores from what `measure` gave (`values`) and the classes of the same rows.

    Args:
        figures: names of FIGURES that are wanted beside, or those of the written answers in `values`.

    Raises:
        UserError: there is no such figure.
    """
    if kind in LANGUAGE:
        mean = float(values[:, 0].double().sum() / values[:, 1].double().sum())
        written = values[:, 2:].double().mean(0).tolist()
        return HeldOutScores(
            rows=len(values),
            loss=mean,
            perplexity=math.exp(min(mean, 700.0)),
            figures=dict(zip(figures, written, strict=True)) if written else {},
        )
    target = torch.tensor(list(labels), dtype=torch.int64)
    auc = None
    logs = F.log_softmax(values.double(), dim=1)
    calibrated = float(((logs - logs.mean(0)).argmax(1) == target).double().mean())
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
        figures={name: _figure(name)(values, target) for name in figures},
    )


def _figure(name: str) -> Figure:
    if name not in FIGURES:
        raise UserError(
            f"the task asks for the metric {name!r}; expected one of {', '.join(FIGURES)}, or one that you put into "
            "blockzo.finetune.metrics.FIGURES"
        )
    return FIGURES[name]


def macro_f1(values: Tensor, target: Tensor) -> float:
    """Mean over the classes of F1; 0 for a class that is neither there nor said."""
    said = values.argmax(1)
    found = []
    for number in range(values.shape[1]):
        right = int(((said == number) & (target == number)).sum())
        either = int((said == number).sum()) + int((target == number).sum())
        found.append(2 * right / either if either else 0.0)
    return sum(found) / len(found)


FIGURES: dict[str, Figure] = {"macro_f1": macro_f1}
"""Metrics that a task can ask for by name; put your own in here."""


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
