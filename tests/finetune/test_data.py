"""Reading rows: every kind of bad file gives an error that names file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from blockzo.finetune.data.read import find_file, hold_out, limit, parse_where, read_examples, shots
from blockzo.finetune.data.rows import read_lines
from blockzo.finetune.data.tasks import PromptTask, find_task
from blockzo.finetune.errors import UserError

TASK = PromptTask("custom", "{text} It was {label}", {"0": "bad", "1": "good"})


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.tsv", b"text\tlabel\nfine\t1\n\nbroken\n", r"a\.tsv, line 4: 1 fields, the header has 2"),
        ("a.tsv", b"text\tlabel\none\ttwo\t1\n", r"line 2: 3 fields"),
        ("a.tsv", b"text\tlabel\nfine\t1\nodd\t7\n", r"line 3: label '7' is not one of 0, 1.*--labels"),
        ("a.tsv", b"text\tlabel\n \t1\n", r"line 2: the text is empty"),
        ("a.tsv", b"sentence\tclass\nfine\t1\n", r"line 2: no column 'label'.*sentence, class"),
        ("a.tsv", b"words\tlabel\nfine\t1\n", r"line 2: no column 'text'.*words, label"),
        ("a.tsv", b"text\tlabel\n", r"a\.tsv: no data"),
        ("a.tsv", b"", r"a\.tsv: no data"),
        ("a.tsv", b"text\tlabel\nfine\t1\nb\xff\t1\n", r"line 3: not UTF-8"),
        ("a.jsonl", b'{"text": "fine", "label": 1}\n{"text": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'["text"]\n', r"line 1: list found"),
        ("a.jsonl", b'{"text": null, "label": 1}\n', r"line 1: text is null"),
        ("a.xml", b"text,label\n", r"kind 'xml' are not read; expected \.tsv, \.csv or \.jsonl"),
        ("a.tsv.gz", b"not gzip", r"broken gzip file"),
        ("a.tsv.gz", gzip.compress(b"text\tlabel\n" + b"fine\t1\n" * 99, mtime=0)[:-6], r"broken gzip file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_examples(write(tmp_path / name, data), TASK)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist.*--train"):
        read_examples(tmp_path / "gone.tsv", TASK)
    with pytest.raises(UserError, match="is a folder"):
        list(read_lines(tmp_path))
    with pytest.raises(UserError, match=r"train\.tsv\.gz of task sst2 was not found.*--data-dir"):
        find_file("train.tsv.gz", "sst2", tmp_path)


def test_tsv_and_jsonl_give_the_same_examples(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", b'\xef\xbb\xbftext\tlabel\r\na "quoted" film\t1\r\nb\t0\r\n')
    lines = b'{"label": 1, "text": "a \\"quoted\\" film"}\n{"text": "b", "label": "0", "idx": 3}\n'
    jsonl = write(tmp_path / "a.jsonl", lines)
    packed = write(tmp_path / "b.jsonl.gz", gzip.compress(lines))
    found = [[(dict(e.columns), e.label) for e in read_examples(path, TASK)] for path in (tsv, jsonl, packed)]
    assert found[0] == found[1] == found[2] == [({"text": 'a "quoted" film'}, 1), ({"text": "b"}, 0)]


def test_boolean_labels_and_other_column_names(tmp_path: Path) -> None:
    task = find_task("boolq")
    path = write(tmp_path / "a.jsonl", b'{"question": "q", "passage": "p", "label": false}\n')
    assert read_examples(path, task)[0].label == 1
    pair = write(tmp_path / "b.tsv", b"label\ttext_a\ttext_b\nentailment\tone\ttwo\n")
    assert dict(read_examples(pair, find_task("rte"))[0].columns) == {"premise": "one", "hypothesis": "two"}


def test_the_few_shot_files_are_read_by_a_row_filter(shared_data: Path) -> None:
    where = parse_where("k=16, seed=13,split=train")
    examples = read_examples(shared_data / "kshot" / "sst2.tsv.gz", find_task("sst2"), where)
    assert [e.label for e in examples].count(0) == [e.label for e in examples].count(1) == 16
    with pytest.raises(UserError, match="none of its 10560 rows has k=17"):
        read_examples(shared_data / "kshot" / "sst2.tsv.gz", find_task("sst2"), {"k": "17"})
    with pytest.raises(UserError, match="COLUMN=VALUE"):
        parse_where("k16")


def test_choices_of_rows(tmp_path: Path) -> None:
    lines = "".join(f"row {i}\t{i % 3 == 0:d}\n" for i in range(30))
    path = write(tmp_path / "a.tsv", b"text\tlabel\n" + lines.encode())
    examples = read_examples(path, TASK)
    few = shots(examples, 4, TASK, seed=5, path=path)
    assert [e.label for e in few].count(0) == [e.label for e in few].count(1) == 4
    assert few == shots(examples, 4, TASK, seed=5, path=path) != shots(examples, 4, TASK, seed=6, path=path)
    with pytest.raises(UserError, match="only 10 rows have label '1'"):
        shots(examples, 11, TASK, seed=5, path=path)
    rest, held = hold_out(examples, 7, 5, path)
    assert len(held) == 7 and not {e.place for e in rest} & {e.place for e in held} and len(rest) == 23
    with pytest.raises(UserError, match="must leave at least one row"):
        hold_out(examples, 30, 5, path)
    assert len(limit(examples, 8, 5, "x")) == 8 and limit(examples, None, 5, "x") == examples
