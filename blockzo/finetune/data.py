"""Rows from TSV and JSONL files (plain or gzip), and which of them are used. Errors name file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.order import shuffled
from blockzo.finetune.tasks import ALIASES, Task


@dataclass(frozen=True)
class Example:
    """One row: the columns that the task's templates read, and the number of its class."""

    columns: Mapping[str, str]
    label: int
    place: str
    """`file, line n`, for messages."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 text file, `.gz` or plain.

    Raises:
        UserError: the file is missing, a folder, not readable, not UTF-8 or a broken gzip file.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path, or give the data with --train and --validation")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .tsv, .jsonl or .txt file (or one of these with .gz)")
    number = 0
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}, after line {number}: broken gzip file ({error}); fetch or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of every row. TSV: a header line, split on tabs, no quoting. JSONL: one object a line.

    Raises:
        UserError: a line that is not a row, an unknown kind of file.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in ("tsv", "jsonl"):
        raise UserError(f"{path}: files of kind {kind!r} are not read; expected .tsv or .jsonl, plain or with .gz")
    header: list[str] | None = None
    for number, line in read_lines(path):
        if not line.strip():
            continue
        if kind == "jsonl":
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg}); expected one object a line") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: {type(row).__name__} found; expected one JSON object a line")
            yield number, row
            continue
        cells = line.split("\t")
        if header is None:
            header = [cell.lstrip("\ufeff").strip() for cell in cells]
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(cells)} fields, the header has {len(header)} ({', '.join(header)}); "
                "expected as many, separated by single tabs"
            )
        yield number, dict(zip(header, cells, strict=True))


def read_examples(path: Path, task: Task, where: Mapping[str, str] | None = None) -> list[Example]:
    """All rows of a file as examples of `task`.

    Args:
        where: only rows whose columns have these values.

    Raises:
        UserError: no rows, a missing column, a label that the task does not have.
    """
    classes = {label: number for number, label in enumerate(task.words)}
    result = []
    seen = 0
    for number, row in read_rows(path):
        place = f"{path}, line {number}"
        seen += 1
        if where and any(_text(_column(row, key, place)) != value for key, value in where.items()):
            continue
        label = _text(_column(row, "label", place))
        if label not in classes:
            raise UserError(
                f"{place}: label {label!r} is not one of {', '.join(classes)}; correct the line, or say what the labels mean "
                "with --labels LABEL=WORD,..."
            )
        columns = {name: _text(_column(row, name, place)) for name in task.columns}
        if not any(text.strip() for text in columns.values()):
            raise UserError(f"{place}: the text is empty; expected something in {', '.join(columns)}")
        result.append(Example(columns, classes[label], place))
    if not result:
        told = " and ".join(f"{k}={v}" for k, v in (where or {}).items())
        found = f"none of its {seen} rows has {told}" if seen and told else "it has no rows after the header"
        raise UserError(f"{path}: no data, {found}; expected at least one row")
    return result


def _column(row: Mapping[str, Any], name: str, place: str) -> Any:
    for candidate in (name, *ALIASES.get(name, ())):
        if candidate in row and row[candidate] is not None:
            return row[candidate]
    raise UserError(
        f"{place}: no column {name!r} (columns here: {', '.join(map(str, row))}); name the columns in --template as they are "
        "named in the file; the label's column is called label"
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip()


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


def limit(examples: Sequence[Example], rows: int | None, seed: int, purpose: str) -> list[Example]:
    """`rows` examples chosen by seed (all where None), in file order."""
    if rows is None or rows >= len(examples):
        return list(examples)
    return [examples[i] for i in sorted(shuffled(len(examples), seed, purpose)[:rows])]


def shots(examples: Sequence[Example], count: int, task: Task, seed: int, path: Path) -> list[Example]:
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


def hold_out(examples: Sequence[Example], rows: int, seed: int, path: Path) -> tuple[list[Example], list[Example]]:
    """Splits off `rows` examples chosen by seed: (the rest, those)."""
    if not 0 < rows < len(examples):
        raise UserError(f"{path} has {len(examples)} rows; --holdout {rows} must leave at least one row to train on")
    held = set(shuffled(len(examples), seed, "holdout")[:rows])
    return (
        [e for i, e in enumerate(examples) if i not in held],
        [e for i, e in enumerate(examples) if i in held],
    )


def find_file(name: str, task: str, data_dir: Path | None) -> Path:
    """A ready-made task's file: in `data_dir`, the repository's data folder, or the shared data beside it.

    Raises:
        UserError: it is in none of them; the message lists where it was sought.
    """
    repository = Path(__file__).resolve().parents[2]
    roots = (
        [data_dir]
        if data_dir is not None
        else [Path("data"), repository / "data", repository.parent / "shared" / "data"]
    )
    places = [root / task / name for root in roots] + ([data_dir / name] if data_dir is not None else [])
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"the file {name} of task {task} was not found (sought: {', '.join(str(p.parent) for p in places)}); "
        "give the data with --train and --validation, or its folder with --data-dir"
    )
