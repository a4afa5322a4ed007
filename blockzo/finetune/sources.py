"""The rows that a run's settings name, read and chosen, before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockzo.finetune.data import read as rows_of
from blockzo.finetune.data.columnar import HUB
from blockzo.finetune.data.columns import parse_columns, renamed
from blockzo.finetune.data.completion_task import CompletionTask
from blockzo.finetune.data.rows import TABLES, kind_of, read_rows, text_lines, text_of
from blockzo.finetune.data.tasks import PromptTask, find_task
from blockzo.finetune.data.written import read_written
from blockzo.finetune.errors import UserError, about
from blockzo.finetune.option import named
from blockzo.finetune.settings import Settings

Owners = Callable[[list[dict[str, Any]]], list[list[int]]]
"""Training rows with all columns of their file -> the numbers of each owner's rows."""


@dataclass
class Source:
    """Rows as they were read: examples of a task (`Example`, `WrittenExample`), or lines of plain text.

    Attributes:
        parts: numbers of each owner's rows in `train`, where there are owners.
        train_texts: lines of each text that stands for itself: of each owner, else one.
    """

    train_path: Path
    validation_path: Path
    train: list[Any] = field(default_factory=list)
    validation: list[Any] = field(default_factory=list)
    parts: list[list[int]] | None = None
    train_texts: list[list[str]] = field(default_factory=list)
    validation_lines: list[str] = field(default_factory=list)


OF_CLASSES = ("labels", "label_column", "text_column", "shots")


def check_fits(settings: Settings, written: CompletionTask | None) -> None:
    """Raises UserError where options of classification tasks meet a task whose answers are written, or the other way round."""
    others = OF_CLASSES if written is not None else ("metrics", "max_new_tokens")
    wrong = next((name for name in others if getattr(settings, name) is not None), None)
    if wrong is not None:
        whose = "classification tasks" if written is not None else "tasks with written answers (sft, squad, ...)"
        raise UserError(f"{named(wrong)} belongs to {whose}, and --task {settings.task} is none; leave it out")


def task_of(settings: Settings) -> PromptTask:
    return find_task(settings.task, settings.template, settings.labels, settings.label_column, settings.text_column)


def read_task(
    settings: Settings,
    task: PromptTask | CompletionTask,
    notes: list[str],
    training: bool,
    owners: Owners | None = None,
) -> Source:
    mapping = parse_columns(settings.columns)

    def read(path: Path, where: Mapping[str, str] | None = None) -> list[Any]:
        if isinstance(task, CompletionTask):
            return list(read_written(path, task, mapping, where))
        return list(rows_of.read_examples(path, task, where, mapping))

    folder = None if settings.data_dir is None else Path(settings.data_dir)
    train_path, validation_path = (
        Path(given)
        if given is not None
        else (
            rows_of.find_file(ready, getattr(task, "folder", None) or task.name, folder) if ready is not None else None
        )
        for given, ready in ((settings.train, task.train), (settings.validation, task.validation))
    )
    if validation_path is not None and not training:
        found = read(validation_path)
        found = rows_of.limit(found, settings.final_rows, settings.seed, "held-out rows")
        return Source(validation_path, validation_path, [], found)
    if train_path is None:
        raise UserError(
            f"the task {task.name} has no data of its own; give it with --train FILE (and --validation FILE)"
        )
    where = rows_of.parse_where(settings.train_where)
    with about("--train-where") if where else nullcontext():
        train = read(train_path, where)
    if validation_path is not None:
        validation = read(validation_path)
    else:
        count = settings.holdout or task.holdout or max(1, len(train) // 5)
        train, validation = rows_of.hold_out(train, count, settings.seed, train_path)
        notes.append(
            f"no validation file: {count} rows of {train_path} are held out (chosen by --seed) and not trained on"
        )
        validation_path = train_path
    if settings.shots is not None and isinstance(task, PromptTask):
        train = rows_of.shots(train, settings.shots, task, settings.seed, train_path)
    else:
        train = rows_of.limit(train, settings.train_rows, settings.seed, "training rows")
    validation = rows_of.limit(validation, settings.final_rows, settings.seed, "held-out rows")
    notes += _oddities(train, validation, task)
    parts = None if owners is None else owners(_whole_rows(train_path, [one.place for one in train], mapping))
    return Source(train_path, validation_path, train, validation, parts)


OVERLAP = 0.1
"""Share of held-out rows that stand in the training data, above which their figures are of known text."""


def _oddities(train: list[Any], validation: list[Any], task: PromptTask | CompletionTask) -> list[str]:
    """What is read well and may not be meant: labels without a row, held-out rows that are trained on."""
    notes = []
    if isinstance(task, PromptTask):
        there = {example.label for example in train}
        lacking = [label for number, label in enumerate(task.words) if number not in there]
        if lacking:
            notes.append(f"no training row has the label {', '.join(map(repr, lacking))}; a model learns not to say it")
    known = {_text(example) for example in train}
    twice = sum(_text(example) in known for example in validation)
    if twice > OVERLAP * len(validation):
        notes.append(
            f"{twice} of {len(validation)} held-out rows have the text of a training row, so figures are not of new text; give "
            "other rows with --validation"
        )
    return notes


def _text(example: Any) -> tuple[Any, ...]:
    said = tuple(tuple(one.items()) for one in getattr(example, "messages", ()))
    return tuple(example.columns.items()), said


def _whole_rows(path: Path, places: list[str], mapping: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows that examples were made of, with all their columns."""
    wanted = set(places)
    every = ((f"{path}, line {number}", row) for number, row in renamed(read_rows(path), mapping, path))
    found = {place: row for place, row in every if place in wanted}
    return [found[place] for place in places]


def read_text(settings: Settings, training: bool, owners: Owners | None = None) -> Source:
    for name in ("template", "labels", "label_column", "shots", "train_where"):
        if getattr(settings, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} belongs to classification tasks; --task lm reads plain text")
    # the only column that it reads
    mapping = parse_columns(settings.columns)
    column = mapping.pop("text", settings.text_column)
    if mapping:
        raise UserError(f"--columns names {next(iter(mapping))!r}, and --task lm reads one column, text; name that one")
    if settings.validation is not None and not training:
        path = Path(settings.validation)
        return Source(path, path, validation_lines=text_lines(path, column))
    if settings.train is None:
        raise UserError("--task lm needs a text file: --train FILE (and --validation FILE)")
    train_path = Path(settings.train)
    validation_path = Path(settings.validation) if settings.validation is not None else train_path
    source = Source(train_path, validation_path)
    if owners is None:
        source.train_texts = [text_lines(train_path, column)]
    else:
        source.train_texts = _texts_of(train_path, column, owners)
    if settings.validation is not None:
        source.validation_lines = text_lines(validation_path, column)
    return source


def _texts_of(path: Path, column: str | None, owners: Owners) -> list[list[str]]:
    """The lines of each owner's rows."""
    if kind_of(path) not in TABLES and not str(path).startswith(HUB):
        raise UserError(
            f"{path} is plain text, whose lines have no columns that say whose they are; give a .tsv, .csv, .jsonl or .parquet "
            "file with the text in one column, or --partition iid"
        )
    rows, texts = [], []
    for number, row in read_rows(path):
        rows.append(row)
        texts.append(text_of(row, column, f"{path}, line {number}"))
    if not any(line.strip() for lines in texts for line in lines):
        raise UserError(f"{path}: no data, the file has no text; expected at least a line")
    return [[line for row in part for line in texts[row]] for part in owners(rows)]
