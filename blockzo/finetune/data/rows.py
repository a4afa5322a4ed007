"""Rows of TSV, CSV, JSONL and Parquet files and of the hub, and lines of plain text (plain or gzip), as they are written.

Errors name file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blockzo.finetune.data.columnar import HUB, hub_rows, parquet_rows
from blockzo.finetune.data.values import Number, flat
from blockzo.finetune.errors import UserError
from blockzo.finetune.stand_ins import check_start

TABLES = ("tsv", "csv", "jsonl", "parquet")
CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
LINE_END = re.compile(r"\r\n|\r|\n")
LARGEST_CELL = 1 << 30
"""Characters; csv's own limit of 131,072 is less than a long document."""
INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")
NULL = "expected a text in quotes (or leave the row out)"
Row = Mapping[str, Any]


def kind_of(path: Path) -> str:
    """What the file's name ends with, without `.gz`."""
    return path.name.removesuffix(".gz").rpartition(".")[2].lower() if "." in path.name else ""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 text file, `.gz` or plain; line ends are LF, CRLF or CR, mixed or not.

    Raises:
        UserError: the file is missing, a folder, not readable, not UTF-8, a broken gzip file, or has a NUL character.
    """
    for number, line, _ in _lines(path):
        yield number, line


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, line, and the end that it had."""
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path, or give the data with --train and --validation")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .tsv, .csv, .jsonl or .txt file (or one of these with .gz)")
    number = 0
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            for raw in file:
                if not number:
                    _check_start(path, raw)
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    line = number + 1 + len(LINE_END.findall(raw[: error.start].decode("utf-8")))
                    raise UserError(
                        f"{path}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8"
                    ) from None
                at = 0
                for end in LINE_END.finditer(text):
                    number += 1
                    yield number, _clean(text[at : end.start()], path, number), end.group()
                    at = end.end()
                if at < len(text):
                    number += 1
                    yield number, _clean(text[at:], path, number), ""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}, after line {number}: broken gzip file ({error}); fetch or compress it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _check_start(path: Path, raw: bytes) -> None:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}, line 1: UTF-16 or UTF-32 text (it begins with {raw[:2]!r}); save the file as UTF-8")
    if raw.startswith(b"\x1f\x8b"):
        told = (
            "was compressed twice; unpack it once"
            if path.suffix == ".gz"
            else "is a gzip file; let its name end with .gz"
        )
        raise UserError(f"{path} {told}")
    check_start(path, raw, "data", page=kind_of(path) not in ("html", "htm"))


def _clean(line: str, path: Path, number: int) -> str:
    if line.startswith("\ufeff"):
        raise UserError(
            f"{path}, line {number}: begins with a byte order mark, as where files were put together; take it out, and a second "
            "header with it"
        )
    if "\0" in line:
        raise UserError(
            f"{path}, line {number}: a NUL character (is it UTF-16, or not text?); save the file as UTF-8 text, without NUL"
        )
    return line


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """First line's number and columns of every row; rows without anything in them are passed over.

    TSV: a header line, split on tabs, no quoting. CSV: a header line, commas, fields with commas or line ends in double quotes.
    JSONL: one object a line; a number keeps the text that it has in the file (`Number`). `cell` makes text of a value.

    Raises:
        UserError: a line that is not a row, a column that is there twice, an unknown kind of file.
    """
    kind = HUB if str(path).startswith(HUB) else kind_of(path)
    if kind in (HUB, "parquet"):
        return hub_rows(str(path)) if kind == HUB else parquet_rows(path)
    if kind not in TABLES:
        raise UserError(
            f"{path}: files of kind {kind!r} are not read; expected .tsv, .csv or .jsonl, plain or with .gz, .parquet, or "
            "a data set of the hub, hub:OWNER/NAME:SPLIT"
        )
    return _objects(path) if kind == "jsonl" else _table(path, kind)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(
                line, parse_int=Number, parse_float=Number, parse_constant=_constant, object_pairs_hook=_once
            )
        except RecursionError:
            raise UserError(
                f"{path}, line {number}: brackets inside brackets too deep; expected a flat object"
            ) from None
        except json.JSONDecodeError as error:
            whole = " (a JSON array over several lines?)" if line.strip() in ("[", "{") else ""
            raise UserError(
                f"{path}, line {number}: not JSON ({error.msg}){whole}; expected one object a line"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {type(row).__name__} found; expected one JSON object a line")
        try:
            columns = flat(row)
        except RecursionError:
            raise UserError(
                f"{path}, line {number}: brackets inside brackets too deep; expected a flat object"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        yield number, columns


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON; write a number, a text in quotes, or leave the row out")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        name = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"{name!r} is there twice in one object; give every name once")
    return found


def _table(path: Path, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] | None = None
    for number, cells in _quoted(path) if kind == "csv" else ((n, line.split("\t")) for n, line in read_lines(path)):
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(header, path, number, kind)
            continue
        if [cell.strip() for cell in cells] == header:
            raise UserError(
                f"{path}, line {number}: the header again, as where files were put together; take this line out"
            )
        if kind == "csv" and any(_begins_late(cell) for cell in cells):
            raise UserError(
                f"{path}, line {number}: a space before a double quote, so that the quotes would be part of the text; put the "
                "quote right after the comma"
            )
        if len(cells) != len(header):
            separator = "commas, and quotes around fields that have some" if kind == "csv" else "single tabs"
            raise UserError(
                f"{path}, line {number}: {len(cells)} fields, the header has {len(header)} ({', '.join(header)}); "
                f"expected as many, separated by {separator}"
            )
        yield number, {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _begins_late(cell: str) -> bool:
    text = cell.lstrip(" ")
    return text != cell and len(text) > 1 and text[0] == '"' and (text.rstrip(" ")[-1] == '"' or text.count('"') == 1)


def _check_header(header: list[str], path: Path, number: int, kind: str) -> None:
    named = [name for name in header if name]
    twice = next((name for i, name in enumerate(named) if name in named[:i]), None)
    if twice is not None:
        raise UserError(f"{path}, line {number}: the header has {twice!r} twice; give every column a name of its own")
    other = next((c for c in (";", "\t", ",") if c in header[0]), None) if len(header) == 1 else None
    if other is not None:
        told = {"csv": "commas", "tsv": "tabs"}[kind]
        raise UserError(
            f"{path}, line {number}: one column, {header[0]!r}; a .{kind} file has its fields separated by {told}, not {other!r}"
        )


def _quoted(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader((line + end for _, line, end in _lines(path)), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}, line {first}: the quotes do not fit ({error}); a field with commas, quotes or line ends stands in "
                'double quotes, and "" stands for a quote in it'
            ) from None
        yield first, cells


def text_of(row: Row, text_column: str | None, place: str) -> list[str]:
    """The lines of a row's text."""
    advice = "--task lm reads the column text of a table; name another with --text-column, or give a .txt file"
    return LINE_END.split(column(row, text_column or "text", place, advice=advice))


def column(row: Row, name: str, place: str, others: tuple[str, ...] = (), advice: str = "") -> str:
    """The text of a row's column.

    Args:
        others: names that stand for it where the row has no column `name`.
        advice: what to do where there is none.

    Raises:
        UserError: there is no such column, there are several of the others, or its value is no text.
    """
    if name in getattr(row, "nulls", ()):
        raise UserError(f"{place}: {shown_name(name)} is null; {NULL}")
    there = [name] if name in row else [other for other in others if other in row]
    if len(there) == 1:
        return cell(row[there[0]], there[0], place)
    if there:
        raise UserError(f"{place}: no column {name!r}, and several that could be it: {', '.join(there)}; {advice}")
    chat = next((key for key in CHATS if isinstance(row.get(key), list)), None)
    if chat is not None:
        raise UserError(
            f"{place}: a conversation ({chat!r}) and no column {name!r}; --task sft trains on the answers of conversations"
        )
    raise UserError(f"{place}: no column {name!r} (columns here: {', '.join(map(shown_name, row))}); {advice}")


def cell(value: Any, name: str, place: str) -> str:
    """A value as text, exactly as it is written: texts, numbers, true and false.

    Raises:
        UserError: a list, an object, null, half of a surrogate pair or a NUL character.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        found = {list: "a list", dict: "an object", type(None): "null"}.get(type(value), type(value).__name__)
        raise UserError(f"{place}: {shown_name(name)} is {found}; {NULL}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise UserError(
            f"{place}: {shown_name(name)} has half of a surrogate pair ({half}), which is no character; write it whole, "
            "or take it out"
        ) from None
    if "\0" in value:
        raise UserError(f"{place}: {shown_name(name)} has a NUL character; take it out")
    return str(value)


def blank(text: str) -> bool:
    """Nothing that could be seen: spaces, and marks without a shape (zero-width spaces, directions)."""
    return all(unicodedata.category(letter) in INVISIBLE for letter in text)


def shown_name(name: object) -> str:
    return str(name).encode("utf-8", "backslashreplace").decode()


def text_lines(path: Path, text_column: str | None = None) -> list[str]:
    """The lines of a text for language modelling: of a plain file, or of the column `text` of a .tsv, .csv or .jsonl file.

    Raises:
        UserError: as `read_lines` and `read_rows`; no text at all, or a column where the file has none.
    """
    kind = kind_of(path)
    if kind in TABLES or str(path).startswith(HUB):
        lines = []
        for number, row in read_rows(path):
            lines += text_of(row, text_column, f"{path}, line {number}")
    elif kind == "json":
        raise UserError(
            f"{path}: .json files are not read; write one object a line into a .jsonl file, with its text in `text`"
        )
    elif text_column is not None:
        raise UserError(f"--text-column is for .tsv, .csv and .jsonl files; {path} is read as plain text")
    else:
        lines = [line for _, line in read_lines(path)]
    if not any(line.strip() for line in lines):
        raise UserError(f"{path}: no data, the file has no text; expected at least a line")
    return lines
