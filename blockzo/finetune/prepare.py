"""From settings to everything a run needs: data, model, prompts, losses, blocks. Cheap checks come before the model is loaded."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from blockzo import Blocks
from blockzo.finetune.data import read as rows_of
from blockzo.finetune.data.order import BatchOrder, shuffled
from blockzo.finetune.data.prompts import Encoded, Encoder, begin_token, windows
from blockzo.finetune.data.read import Example
from blockzo.finetune.data.rows import text_lines
from blockzo.finetune.data.tasks import PromptTask, find_task
from blockzo.finetune.errors import UserError, about
from blockzo.finetune.metrics import HeldOutScores, scores
from blockzo.finetune.models.devices import find_device, settled
from blockzo.finetune.models.loading import Loaded, load, resolve
from blockzo.finetune.scoring import Scorer
from blockzo.finetune.settings import Settings
from blockzo.optim.cutting import fine_blocks

Say = Callable[[str], None]
LM_HOLDOUT = 0.1
"""Share of the windows of a plain text that is held out where no validation file is given."""


@dataclass
class Source:
    """Rows as they were read: examples of a task, or lines of plain text."""

    train_path: Path
    validation_path: Path
    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    train_lines: list[str] = field(default_factory=list)
    validation_lines: list[str] = field(default_factory=list)


@dataclass
class Prepared:
    loaded: Loaded
    task: PromptTask | None
    scorer: Scorer
    train: Encoded
    held_out: Encoded
    source: Source
    notes: list[str]

    @property
    def model(self) -> Any:
        return self.loaded.model

    def blocks(self, settings: Settings) -> Blocks:
        example = self.scorer.inputs(self.scorer.batch(self.train, [0]))
        boundaries = settings.boundaries()
        if boundaries == "fine":
            return fine_blocks(self.model, example)
        with about("--blocks" if settings.blocks is not None else "--split"):
            return Blocks(self.model, boundaries, example=example)

    def order(self, settings: Settings) -> BatchOrder:
        return BatchOrder(self.train.lengths, settings.batch, settings.seed, settings.pool)

    def evaluation_rows(self, settings: Settings) -> list[int]:
        """Held-out rows of the evaluations during the run."""
        count = len(self.held_out.ids)
        return sorted(shuffled(count, settings.seed, "evaluation")[: settings.eval_rows or count])

    def scores(self, values: Tensor, rows: Sequence[int]) -> HeldOutScores:
        """Scores from what `measure` gave for these held-out rows."""
        metrics = self.task.metrics if self.task is not None else ()
        return scores(self.scorer.kind, values, [self.held_out.labels[row] for row in rows], metrics)

    def data_facts(self) -> dict[str, Any]:
        """What the journal's header and the summary say of the data."""
        return {
            "train": {
                "path": str(self.source.train_path),
                "rows": len(self.train.ids),
                "truncated": self.train.truncated,
                "digest": self.train.digest(),
            },
            "validation": {
                "path": str(self.source.validation_path),
                "rows": len(self.held_out.ids),
                "truncated": self.held_out.truncated,
                "digest": self.held_out.digest(),
            },
        }


def prepare(
    settings: Settings, say: Say = lambda text: None, fallback: str | None = None, training: bool = True
) -> Prepared:
    """Reads the data, loads the model, encodes the rows.

    Args:
        say: told of every longer action.
        fallback: see `models.resolve`.
        training: without it, training rows are read only where held-out rows have to be taken from them.

    Raises:
        UserError: data, model and settings do not fit; the message names file and line where there is one.
    """
    notes: list[str] = []
    task = None if settings.task == "lm" else _task(settings)
    source = _read_text(settings, training) if task is None else _read_task(settings, task, notes, training)
    classes = 0 if task is None else len(task.words)
    with about("--model"):
        path = resolve(settings.model, fallback, say)
        say(f"loading {path}")
        loaded = load(
            path,
            settled(settings).dtype,
            settings.head,
            classes,
            settings.seed,
            settings.task,
            labels=() if task is None else tuple(task.words),
            trust_remote_code=settings.trust_remote_code,
            device=find_device(settings.device),
        )
    notes += loaded.notes
    if settings.trainable is not None:
        freeze_others(loaded.model, settings.trainable)
    begin = begin_token(loaded.tokenizer, loaded.kind)
    limit = _limit(settings, loaded, notes)
    pad = loaded.tokenizer.pad_token_id
    pad = pad if pad is not None else 0
    if task is None:
        scorer = Scorer("lm", pad=pad, device=loaded.device)
        train, held_out = _encode_text(settings, source, loaded, min(limit, settings.max_length or 256), begin)
    else:
        encoder = Encoder(loaded.tokenizer, task, loaded.kind, limit, settings.overflow, begin, settings.control_tokens)
        words, told = ([], []) if loaded.kind == "head" else encoder.label_ids()
        notes += told
        scorer = Scorer(loaded.kind, words, pad, loaded.device)
        say(f"encoding {len(source.train) if training else 0} training and {len(source.validation)} held-out rows")
        train, held_out = encoder.encode(source.train if training else []), encoder.encode(source.validation)
        scorer.settle(loaded.model, held_out)
    for name, part in (("training", train), ("held-out", held_out)):
        if part.truncated:
            notes.append(
                f"{part.truncated} of {len(part.ids)} {name} rows had more than {limit} tokens and were shortened "
                "(--max-length, or --overflow error to refuse them)"
            )
    if training and settings.batch > len(train.ids):
        notes.append(
            f"there are only {len(train.ids)} training rows for --batch {settings.batch}; every batch holds them all"
        )
    return Prepared(loaded, task, scorer, train, held_out, source, notes)


def _task(settings: Settings) -> PromptTask:
    return find_task(settings.task, settings.template, settings.labels, settings.label_column, settings.text_column)


def _limit(settings: Settings, loaded: Loaded, notes: list[str]) -> int:
    if settings.max_length is None:
        return loaded.limit
    if settings.max_length > loaded.limit:
        raise UserError(
            f"--max-length is {settings.max_length}, the model takes at most {loaded.limit} tokens; give that or less"
        )
    return settings.max_length


def _read_task(settings: Settings, task: PromptTask, notes: list[str], training: bool) -> Source:
    folder = None if settings.data_dir is None else Path(settings.data_dir)
    train_path, validation_path = (
        Path(given)
        if given is not None
        else (rows_of.find_file(ready, task.name, folder) if ready is not None else None)
        for given, ready in ((settings.train, task.train), (settings.validation, task.validation))
    )
    if validation_path is not None and not training:
        found = rows_of.read_examples(validation_path, task)
        found = rows_of.limit(found, settings.final_rows, settings.seed, "held-out rows")
        return Source(validation_path, validation_path, [], found)
    if train_path is None:
        raise UserError(
            f"the task {task.name} has no data of its own; give it with --train FILE (and --validation FILE)"
        )
    where = rows_of.parse_where(settings.train_where)
    with about("--train-where") if where else nullcontext():
        train = rows_of.read_examples(train_path, task, where)
    if validation_path is not None:
        validation = rows_of.read_examples(validation_path, task)
    else:
        count = settings.holdout or task.holdout or max(1, len(train) // 5)
        train, validation = rows_of.hold_out(train, count, settings.seed, train_path)
        notes.append(
            f"no validation file: {count} rows of {train_path} are held out (chosen by --seed) and not trained on"
        )
        validation_path = train_path
    if settings.shots is not None:
        train = rows_of.shots(train, settings.shots, task, settings.seed, train_path)
    else:
        train = rows_of.limit(train, settings.train_rows, settings.seed, "training rows")
    validation = rows_of.limit(validation, settings.final_rows, settings.seed, "held-out rows")
    return Source(train_path, validation_path, train, validation)


def _read_text(settings: Settings, training: bool) -> Source:
    for name in ("template", "labels", "label_column", "shots", "train_where"):
        if getattr(settings, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} belongs to classification tasks; --task lm reads plain text")
    if settings.validation is not None and not training:
        path = Path(settings.validation)
        return Source(path, path, validation_lines=text_lines(path, settings.text_column))
    if settings.train is None:
        raise UserError("--task lm needs a text file: --train FILE (and --validation FILE)")
    train_path = Path(settings.train)
    validation_path = Path(settings.validation) if settings.validation is not None else train_path
    source = Source(train_path, validation_path)
    source.train_lines = text_lines(train_path, settings.text_column)
    if settings.validation is not None:
        source.validation_lines = text_lines(validation_path, settings.text_column)
    return source


def _encode_text(
    settings: Settings, source: Source, loaded: Loaded, length: int, begin: int | None
) -> tuple[Encoded, Encoded]:
    control = settings.control_tokens
    train = windows(source.train_lines, loaded.tokenizer, length, begin, control)
    if source.validation_lines:
        held_out = windows(source.validation_lines, loaded.tokenizer, length, begin, control)
    else:
        count = settings.holdout or max(1, round(LM_HOLDOUT * len(train.ids)))
        if count >= len(train.ids):
            raise UserError(
                f"{source.train_path}: {len(train.ids)} windows of {length} tokens, {count} of them held out, leave none to "
                "train on; give more text, --validation FILE or a smaller --max-length"
            )
        # the last part of the text, so that no window overlaps or adjoins what is trained on more than once
        held_out, train = _part(train, len(train.ids) - count, None), _part(train, 0, len(train.ids) - count)
    if (source.train_lines and not train.ids) or not held_out.ids:
        raise UserError(f"{source.train_path}: the text is too short for one window; give more text")
    chosen = shuffled(len(train.ids), settings.seed, "training rows")[: settings.train_rows or len(train.ids)]
    return _chosen(train, sorted(chosen)), _part(held_out, 0, settings.final_rows)


def _part(data: Encoded, start: int, stop: int | None) -> Encoded:
    return _chosen(data, range(len(data.ids))[start:stop])


def _chosen(data: Encoded, rows: Sequence[int]) -> Encoded:
    return Encoded([data.ids[i] for i in rows], [data.positions[i] for i in rows], [data.labels[i] for i in rows])


def freeze_others(model: Any, patterns: str) -> None:
    """Leaves trainable only the parameters whose names match one of the comma-separated patterns (`*` and `?` as in a shell).

    Raises:
        UserError: a pattern matches nothing.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"--trainable {pattern!r} matches no parameter; expected patterns like '*norm*', and names like {names[0]}"
            )
    for name, parameter in model.named_parameters():
        matched = any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
        parameter.requires_grad_(parameter.requires_grad and matched)
