"""Any file is read as it is written or refused with file and line, and never with another error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockzo.finetune.data.read import read_examples
from blockzo.finetune.data.rows import column, read_lines, read_rows, text_lines
from blockzo.finetune.data.tasks import find_task
from blockzo.finetune.data.templates import pieces, render
from blockzo.finetune.errors import UserError
from blockzo.finetune.prepare import prepare
from blockzo.finetune.settings import Settings

ENDS = ("\n", "\r\n", "\r")
# no half surrogates and no NUL: these are refused, see below
words = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
flat = words.map(lambda text: text.replace("\t", " ").replace("\r", " ").replace("\n", " "))
names = st.lists(flat.map(str.strip).filter(bool), min_size=2, max_size=4, unique=True)


def write(folder: str | Path, name: str, data: bytes) -> Path:
    path = Path(folder) / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(("tsv", "csv", "jsonl", "tsv.gz")), bom=st.booleans())
def test_rows_come_back_as_they_were_written(data: Any, kind: str, bom: bool) -> None:
    header = data.draw(names)
    some = words if kind in ("csv", "jsonl") else flat
    # a row with nothing in it is no row
    row = st.lists(some, min_size=len(header), max_size=len(header)).filter(lambda cells: any(map(str.strip, cells)))
    rows = data.draw(st.lists(row, max_size=4))
    end = st.sampled_from(ENDS)
    if kind == "csv":
        text = ""
        for cells in (header, *rows):
            line = io.StringIO(newline="")
            csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator=data.draw(end)).writerow(cells)
            text += line.getvalue()
    elif kind == "jsonl":
        text = "".join(
            json.dumps(dict(zip(header, cells, strict=True)), ensure_ascii=data.draw(st.booleans())) + data.draw(end)
            for cells in rows
        )
    else:
        text = "".join("\t".join(cells) + data.draw(end) for cells in (header, *rows))
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, f"a.{kind}", b"\xef\xbb\xbf" * bom + text.encode())
        if header[0].startswith("\ufeff") and kind != "jsonl" and not bom:
            # it is the mark of UTF-8, not a part of the name
            header[0] = header[0].removeprefix("\ufeff").strip()
            if not header[0] or header[0] in header[1:]:
                return
        found = [[column(row, name, "here") for name in header] for _, row in read_rows(path)]
    assert found == rows


@settings(max_examples=300, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from(list(b'ab,;\t\r\n"{}[]:\\u\0\xef\xbb\xbf\xff1-.') + [0x2028 & 0xFF]), max_size=60).map(
            bytes
        ),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        ).map(lambda value: json.dumps({"text": value, "label": 1}).encode()),
    ),
    name=st.sampled_from(("a.tsv", "a.csv", "a.jsonl", "a.txt", "a.jsonl.gz", "b.gz")),
    packed=st.booleans(),
)
def test_any_bytes_are_read_or_refused_with_their_file(content: bytes, name: str, packed: bool) -> None:
    task = find_task("custom", "{text} {label}", "1=a,0=b")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(gzip.compress(content) if packed else content)
        for read in (lambda: read_examples(path, task), lambda: text_lines(path)):
            try:
                for found in read():
                    text = found if isinstance(found, str) else "".join(found.columns.values())
                    text.encode("utf-8")
                    assert "\0" not in text
            except UserError as error:
                assert str(path) in str(error)
                str(error).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", b'{"text": ["good", "film"], "label": 1}', "line 1: text is a list"),
        ("a.jsonl", b'{"text": {"a": 1}, "label": 1}', "line 1: text is an object"),
        ("a.jsonl", b'{"text": {"a": 1}, "text.a": "x", "label": 1}', "line 1: text.a is there twice"),
        ("a.jsonl", b'{"text": NaN, "label": 1}', "line 1: NaN is not JSON"),
        ("a.jsonl", b'{"text": "x", "label": -Infinity}', "line 1: -Infinity is not JSON"),
        ("a.jsonl", b'{"text": "x", "label": null}', "line 1: label is null"),
        ("a.jsonl", b'{"text": "x", "label": [1]}', "line 1: label is a list"),
        ("a.jsonl", b'{"text": "x", "text": "y", "label": 1}', "line 1: 'text' is there twice"),
        ("a.jsonl", b'\n{"text": "x \\ud83d", "label": 1}', r"line 2: text has half of a surrogate pair .\\ud83d"),
        ("a.jsonl", b'{"text": "x\\u0000", "label": 1}', "line 1: text has a NUL"),
        ("a.jsonl", b"[" * 100_000, "line 1: brackets inside brackets too deep"),
        ("a.jsonl", b'[\n{"text": "x"}]', "a JSON array over several lines"),
        ("a.jsonl", b'{"text_a": "x", "sentence": "y", "label": 1}', "several that could be it: text_a, sentence"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "x"}], "label": 1}',
            "a conversation.*--task sft",
        ),
        ("a.tsv", b"text\ttext\tlabel\nx\ty\t1\n", "line 1: the header has 'text' twice"),
        ("a.csv", b"text, text,label\nx,y,1\n", "line 1: the header has 'text' twice"),
        ("a.csv", b'text,label\n"x,1\ny,0\n', "line 2: the quotes do not fit"),
        ("a.csv", b'text,label\n"x"y,1\n', "line 2: the quotes do not fit"),
        ("a.csv", b'text,label\n"a\nb",1\nc\n', "line 4: 1 fields, the header has 2"),
        ("a.csv", b"text;label\nx;1\n", "one column, 'text;label'.*commas, not ';'"),
        ("a.tsv", b"text,label\nx,1\n", "one column.*tabs, not ','"),
        ("a.tsv", "text\tlabel\nx\t1\n".encode("utf-16"), "line 1: UTF-16"),
        ("a.tsv", "text\tlabel\nx\t1\n".encode("utf-16-le"), "line 1: a NUL character .is it UTF-16"),
        ("a.tsv", b"text\tlabel\rx\t1\ry\xff\t1\r", "line 3: not UTF-8"),
        ("a.tsv", gzip.compress(b"text", mtime=0), "let its name end with .gz"),
        ("a.tsv.gz", gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "was compressed twice; unpack it once"),
        ("a.tsv", b"text\tlabel\nx\t1\ntext\tlabel\ny\t0\n", "line 3: the header again"),
        ("a.csv", b"text,label\nx,1\n text , label\ny,0\n", "line 3: the header again"),
        ("a.tsv", b"text\tlabel\nx\t1\n\xef\xbb\xbfy\t0\n", "line 3: begins with a byte order mark"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n\xef\xbb\xbf{"text": "y"}', "line 2: begins with a byte order mark"),
        ("a.csv", b'label, text\n1, "good"\n', "line 2: a space before a double quote"),
        ("a.csv", b'label, text\n1, "good, film"\n', "line 2: a space before a double quote"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid x\n", "is a Git LFS pointer, not data"),
        ("a.jsonl", b"\n<!DOCTYPE html>", "not JSON"),
        ("a.csv", b"<!DOCTYPE html><html>, 404\n", "is a web page, not data"),
    ],
)
def test_rows_that_nobody_could_mean(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    task = find_task("custom", "{text} It was {label}", "0=bad,1=good")
    with pytest.raises(UserError, match=told) as caught:
        read_examples(write(tmp_path, name, data), task)
    assert str(tmp_path / name) in str(caught.value)


def test_values_that_are_text_as_they_are_written(tmp_path: Path) -> None:
    task = find_task("custom", "{text} {n} {b} {label}", "true=good,1=bad")
    data = b'{"text": "it is", "n": 1.50e1, "b": false, "label": true, "other": [null]}\n'
    data += b'{"text": "", "n": 7, "b": "x", "label": 1}'
    found = read_examples(write(tmp_path, "a.jsonl", data), task)
    assert [dict(e.columns) for e in found] == [
        {"text": "it is", "n": "1.50e1", "b": "false"},
        {"text": "", "n": "7", "b": "x"},
    ]
    assert [e.label for e in found] == [0, 1]


def test_line_ends_blank_rows_and_marks(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", b"\xef\xbb\xbftext\tlabel\rgood\t 1 \r\n\t\t\n\nbad\x0b\xe2\x80\xa8here\t0\r\r\n")
    found = read_examples(path, find_task("custom", "{text} {label}", "0=bad,1=good"))
    assert [(e.columns["text"], e.label, e.place.rpartition(" ")[2]) for e in found] == [
        ("good", 1, "2"),
        ("bad\x0b\u2028here", 0, "5"),
    ]
    assert [line for _, line in read_lines(write(tmp_path, "a.txt", b"a\rb\r\n\nc"))] == ["a", "b", "", "c"]


def test_quoted_fields_and_long_ones(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = write(
        tmp_path,
        "a.csv",
        f'text,label\r\n"a ""b"", c\r\nd",1\r\n{long},0\r\n,,\r\n'.replace(",,\r\n", ",\r\n").encode(),
    )
    assert [row for _, row in read_rows(path)] == [
        {"text": 'a "b", c\r\nd', "label": "1"},
        {"text": long, "label": "0"},
    ]


def test_columns_by_any_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"Review Text,How: good?,label\nfine {x},1,no\n")
    named = find_task("custom", "{Review Text} It was {label}.", "0=bad,1=good", "How: good?")
    mapped = find_task("sst2", None, None, "How: good?", "Review Text")
    for task, name in ((named, "Review Text"), (mapped, "text")):
        (example,) = read_examples(path, task)
        assert example.columns == {name: "fine {x}"} and example.label == 1
        assert render(task.parts(False)[0], example.columns) == "fine {x} It was "
    assert read_examples(path, find_task("agnews", None, "1=a,2=b", "How: good?", "Review Text"))[0].label == 0
    with pytest.raises(UserError, match="no column 'Text'.*--text-column"):
        read_examples(path, find_task("sst2", None, None, "How: good?", "Text"))
    with pytest.raises(UserError, match="no column 'class'.*--label-column"):
        read_examples(path, find_task("sst2", None, None, "class", "Review Text"))
    with pytest.raises(UserError, match="this one reads premise, hypothesis"):
        find_task("rte", None, None, None, "Review Text")


@given(
    parts=st.lists(st.tuples(words, words.filter(lambda n: n.strip() and not set(n) & set("{}"))), max_size=3),
    end=words,
)
def test_templates_hold_any_text_and_any_name(parts: list[tuple[str, str]], end: str) -> None:
    def literal(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    template = "".join(f"{literal(text)}{{{name}}}" for text, name in parts) + literal(end)
    assert pieces(template) == [*((text, name.strip()) for text, name in parts), (end, None)]
    filled = render(template, {name.strip(): "{a}" for _, name in parts})
    assert filled == "".join(text + "{a}" for text, _ in parts) + end


def test_language_modelling_reads_the_text_of_tables(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"text": "one\\r\\ntwo"}\n{"text": "three"}\n')
    assert text_lines(path) == ["one", "two", "three"]
    assert text_lines(write(tmp_path, "a.tsv", b"id\tBody\n1\tone\n"), "Body") == ["one"]
    chat = write(tmp_path, "b.jsonl", b'{"messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(UserError, match="line 1: a conversation"):
        prepare(Settings(model="none", task="lm", train=str(chat)))
    with pytest.raises(UserError, match="line 1: no column 'text' .columns here: prompt.*--text-column"):
        text_lines(write(tmp_path, "c.jsonl", b'{"prompt": "x"}\n'))
    with pytest.raises(UserError, match="is read as plain text"):
        text_lines(write(tmp_path, "c.txt", b"x\n"), "text")
    with pytest.raises(UserError, match=r"\.json files are not read"):
        text_lines(write(tmp_path, "c.json", b"[]\n"))


def test_columns_inside_an_object_have_names_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"target": {"word": "it", "at": {"from": 3}}, "label": 1}\n')
    (example,) = read_examples(path, find_task("custom", "{target.word} {target.at.from} {label}", "1=a,0=b"))
    assert example.columns == {"target.word": "it", "target.at.from": "3"}


def test_plain_text_that_is_no_text_of_anybody(tmp_path: Path) -> None:
    for name, data, told in (
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("a.txt", b"<html><body>404</body></html>\n", "is a web page"),
    ):
        with pytest.raises(UserError, match=told):
            text_lines(write(tmp_path, name, data))
    assert text_lines(write(tmp_path, "a.html", b"<html>hello")) == ["<html>hello"]


def test_a_quote_after_a_space_inside_of_text_is_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b'label, text\n1, he said "so" \n0, "so" he said\n')
    found = read_examples(path, find_task("custom", "{text} {label}", "0=bad,1=good"))
    assert [e.columns["text"] for e in found] == ['he said "so"', '"so" he said']


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_labels_are_the_same_letters_however_they_are_composed(tmp_path: Path, forms: tuple[str, str]) -> None:
    said, typed = (normalize(form, "caf\u00e9") for form in forms)
    path = write(tmp_path, "a.jsonl", json.dumps({"text": "x", "label": said}).encode())
    (example,) = read_examples(path, find_task("custom", "{text} {label}", f"{typed}=good,0=bad"))
    assert example.label == 0


def test_a_column_that_a_parquet_file_has_twice(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [pyarrow.array(["x"]), pyarrow.array(["y"]), pyarrow.array([1])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "text", "label"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet has the column 'text' twice"):
        list(read_rows(tmp_path / "a.parquet"))


def test_what_a_parquet_file_has_in_other_rows_alone_is_null_and_no_other_column_stands_for_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path, task = tmp_path / "a.parquet", find_task("custom", "{text} {label}", "0=bad,1=good")
    table = {"text": ["x", None], "sentence": ["y", "z"], "label": [1.0, float("nan")], "score": [None, 1]}
    parquet.write_table(pyarrow.table({**table, "label": [1, 0]}), path)
    with pytest.raises(UserError, match="line 2: text is null; expected a text"):
        read_examples(path, task)
    with pytest.raises(UserError, match="line 1: score is null; expected a text"):
        read_examples(path, task, mapping={"text": "score"})
    assert [e.columns["text"] for e in read_examples(path, task, mapping={"text": "sentence"})] == ["y", "z"]
    parquet.write_table(pyarrow.table({**table, "text": ["x", "y"]}), path)
    with pytest.raises(UserError, match="line 2: label is null"):
        read_examples(path, find_task("custom", "{text} {label}", "1.0=bad,0.0=good"))
