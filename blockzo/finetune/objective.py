"""What a step makes smaller: the loss, or what has no gradient: accuracy, figures of written answers, a user's reward."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from blockzo.finetune.data.completions import Completions
from blockzo.finetune.data.prompts import Encoded
from blockzo.finetune.errors import UserError
from blockzo.finetune.reward import load_reward
from blockzo.finetune.scoring import LANGUAGE, Batch, Scorer
from blockzo.finetune.settings import Settings
from blockzo.finetune.text_figures import TEXT_FIGURES, best


class Objective:
    """A loss function of a run; `writes`: it reads what the model writes, so its evaluations run whole and one after the other.
    Then the scorer's writer measures it on held-out rows, too.

    Args:
        data: the rows that batches are made of.

    Raises:
        UserError: the task has no such objective, or the reward's file no such function.
    """

    def __init__(self, settings: Settings, scorer: Scorer, data: Encoded) -> None:
        self.scorer, self.data, self.name = scorer, data, settings.objective
        self.reward = None if settings.reward is None else load_reward(settings.reward)
        self.writes = self.reward is not None or self.name in TEXT_FIGURES
        if self.writes and scorer.kind != "completion":
            told = "--reward" if self.reward else f"--objective {self.name}"
            raise UserError(
                f"{told} reads written answers; --task {settings.task} has none: use sft, squad or another that has"
            )
        if self.name == "accuracy" and scorer.kind in LANGUAGE:
            raise UserError(
                f"--objective accuracy is of tasks with classes; --task {settings.task} has none: use loss, or where answers are "
                f"written {', '.join(TEXT_FIGURES)}"
            )
        if scorer.writer is not None:
            scorer.writer.measure_too(self.name if self.name in TEXT_FIGURES else None, self.reward)

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """A number that the step makes smaller: a tensor, or of written answers a float."""
        if self.writes:
            return -self._gain(model, batch)
        if self.name == "accuracy":
            return 1.0 - (self.scorer.logits(model, batch).argmax(1) == batch["labels"]).float().mean()
        return self.scorer.loss(model, batch)

    def terms(self, batch: Batch) -> float:
        """What it is a mean over."""
        return self.scorer.terms(batch) if self.name == "loss" and not self.writes else batch["ids"].shape[0]

    def _gain(self, model: nn.Module, batch: Batch) -> float:
        """Mean over the rows; a figure is less 1, so that what is made smaller is 1 - F1."""
        writer, data, rows = self.scorer.writer, self.data, batch["rows"].tolist()
        assert writer is not None and isinstance(data, Completions)
        prompts = [data.prompt(row) for row in rows]
        texts = writer.write(model, prompts)
        right = [data.answers[row] for row in rows]
        if self.reward is not None:
            return math.fsum(writer.rewards(prompts, texts, right)) / len(rows)
        return math.fsum(best(self.name, *pair) for pair in zip(texts, right, strict=True)) / len(rows) - 1.0
