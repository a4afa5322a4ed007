"""The 500 rows of `shared/data/squad_small` in parts that share no passage: to train, to choose rates, to measure."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "squad_small" / "train.jsonl.gz"
PARTS = {"test": 160, "dev": 64}
"""Rows at least; the rest is for training."""

Row = dict[str, str]


def parts(path: Path = DATA) -> dict[str, list[Row]]:
    """train, dev and test. Passages are placed whole, by their SHA-256: no run and no seed changes the parts."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    passages: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        passages[row["passage"]].append(row)
    waiting = sorted(passages, key=lambda text: hashlib.sha256(text.encode()).hexdigest(), reverse=True)
    found: dict[str, list[Row]] = {}
    for name, least in PARTS.items():
        found[name] = []
        while waiting and len(found[name]) < least:
            found[name] += passages[waiting.pop()]
    return {"train": [row for text in reversed(waiting) for row in passages[text]], **found}


def write(folder: Path, path: Path = DATA) -> dict[str, Path]:
    """The parts as JSONL files, as `--train` and `--validation` take them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in ("train", *PARTS)}
    for name, rows in parts(path).items():
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def conversation(row: Row) -> list[dict[str, str]]:
    """The row as a user who asks about a passage, and an assistant who answers."""
    asked = f"{row['passage']}\n\n{row['query']}"
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["answer"]}]
