"""Rows of a task's files as examples, and which of them are used. Errors name file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

from blockzo.finetune.data.columns import renamed
from blockzo.finetune.data.order import shuffled
from blockzo.finetune.data.rows import blank, column, read_rows
from blockzo.finetune.data.task import ALIASES, PromptTask
from blockzo.finetune.errors import UserError

NAMES = "name the columns in --template as they are named in the file, or the one text with --text-column"
LABEL = "name the label's column with --label-column"
Row = TypeVar("Row")
WHERE = "--train-where takes names of columns"


@dataclass(frozen=True)
class Example:
    """One row: the columns that the task's templates read, without white space around them, and the number of its class."""

    columns: Mapping[str, str]
    label: int
    place: str
    """`file, line n`, for messages."""


def read_examples(
    path: Path,
    task: PromptTask,
    where: Mapping[str, str] | None = None,
    mapping: Mapping[str, str] | None = None,
) -> list[Example]:
    """All rows of a file as examples of `task`.

    Args:
        where: only rows whose columns have these values.
        mapping: name that the task uses -> column of the file.

    Raises:
        UserError: no rows, a missing column, a label that the task does not have.
    """
    classes = {label: number for number, label in enumerate(task.words)}
    composed = {normalize("NFC", label): label for label in task.words}
    result = []
    seen = 0
    for number, row in renamed(read_rows(path), mapping or {}, path):
        place = f"{path}, line {number}"
        seen += 1
        if where and any(column(row, key, place, advice=WHERE).strip() != value for key, value in where.items()):
            continue
        label = column(row, task.label_column, place, advice=LABEL).strip()
        # letters with marks may be written as one character or as two
        label = label if label in classes else composed.get(normalize("NFC", label), label)
        if label not in classes:
            raise UserError(
                f"{place}: label {label!r} is not one of {', '.join(classes)}; correct the line, say what the labels mean with "
                "--labels LABEL=WORD,..., or name another column with --label-column"
            )
        columns = {}
        for name in task.columns:
            wanted = task.source(name)
            others = ALIASES.get(name, ()) if wanted == name else ()
            columns[name] = column(row, wanted, place, others, NAMES).strip()
        if all(map(blank, columns.values())):
            raise UserError(f"{place}: the text is empty; expected something in {', '.join(columns)}")
        result.append(Example(columns, classes[label], place))
    if not result:
        told = " and ".join(f"{k}={v}" for k, v in (where or {}).items())
        found = f"none of its {seen} rows has {told}" if seen and told else "it has no rows after the header"
        raise UserError(f"{path}: no data, {found}; expected at least one row")
    return result


def parse_where(text: str | None) -> dict[str, str]:
    """`k=16,seed=13,split=train` -> a mapping."""
    result: dict[str, str] = {}
    for entry in (text or "").split(","):
        key, found, value = entry.partition("=")
        if entry.strip() and (not found or not key.strip()):
            raise UserError(f"--train-where has {entry!r}; expected COLUMN=VALUE entries like k=16,seed=13,split=train")
        if found:
            result[key.strip()] = value.strip()
    return result


def limit(examples: Sequence[Row], rows: int | None, seed: int, purpose: str) -> list[Row]:
    """`rows` examples chosen by seed (all where None), in file order."""
    if rows is None or rows >= len(examples):
        return list(examples)
    return [examples[i] for i in sorted(shuffled(len(examples), seed, purpose)[:rows])]


def shots(examples: Sequence[Example], count: int, task: PromptTask, seed: int, path: Path) -> list[Example]:
    """`count` examples of every class, chosen by seed."""
    order = shuffled(len(examples), seed, "shots")
    chosen: list[int] = []
    for number, label in enumerate(task.words):
        members = [i for i in order if examples[i].label == number]
        if len(members) < count:
            raise UserError(
                f"{path}: only {len(members)} rows have label {label!r}; --shots {count} needs as many of every label"
            )
        chosen += members[:count]
    return [examples[i] for i in sorted(chosen)]


def hold_out(examples: Sequence[Row], rows: int, seed: int, path: Path) -> tuple[list[Row], list[Row]]:
    """Splits off `rows` examples chosen by seed: (the rest, those)."""
    if not 0 < rows < len(examples):
        raise UserError(f"{path} has {len(examples)} rows; --holdout {rows} must leave at least one row to train on")
    held = set(shuffled(len(examples), seed, "holdout")[:rows])
    return (
        [e for i, e in enumerate(examples) if i not in held],
        [e for i, e in enumerate(examples) if i in held],
    )


def find_file(name: str, task: str, data_dir: Path | None) -> Path:
    """A ready-made task's file: in `data_dir`, the repository's data folder, the shared data beside it, or (SST-2 and TREC)
    this package.

    Raises:
        UserError: it is in none of them; the message lists where it was sought.
    """
    repository = Path(__file__).resolve().parents[3]
    roots = (
        [data_dir]
        if data_dir is not None
        else [Path("data"), repository / "data", repository.parent / "shared" / "data", Path(__file__).parent]
    )
    places = [root / task / name for root in roots] + ([data_dir / name] if data_dir is not None else [])
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"the file {name} of task {task} was not found (sought: {', '.join(str(p.parent) for p in places)}); "
        "give the data with --train and --validation, or its folder with --data-dir"
    )
