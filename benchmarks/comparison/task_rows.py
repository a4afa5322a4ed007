"""Rows of a task: to train on (a few-shot split), to tune on, and to score. No row is in two of them (a few texts of TREC are
twice in its files).

The published splits (`shared/data/kshot`) where there are some. AG News and BoolQ have none: rows of each class are drawn by the
split's seed, from AG News' training rows, and from BoolQ's validation rows less 1,000 that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockzo.finetune.data.read import Example, find_file, limit, read_examples, shots
from blockzo.finetune.data.task import PromptTask

SCORED, DEV, HELD = 320, 192, 1000
PUBLISHED = ("sst2", "trec", "sst5", "rte")
DRAWN = ("agnews", "boolq")
TASKS = (*PUBLISHED, *DRAWN)


def training(task: PromptTask, name: str, count: int, split: int) -> list[Example]:
    """`count` rows of each class of the split with this seed."""
    if name in DRAWN:
        pool, _ = _drawn(task, name)
        return shots(pool, count, task, split, find_file(str(task.train), name, None))
    return _published(task, name, count, split, "train")


def dev(task: PromptTask, name: str, split: int, trained: Sequence[Example]) -> list[Example]:
    """DEV rows, none with the text of a row that is trained on."""
    known = {tuple(example.columns.values()) for example in trained}
    # of the large split, since the dev rows of 16 a class are too few to tell rates apart
    pool = _drawn(task, name)[0] if name in DRAWN else _published(task, name, 512, split, "dev")
    return limit([row for row in pool if tuple(row.columns.values()) not in known], DEV, 0, "dev rows")


def scored(task: PromptTask, name: str) -> list[Example]:
    """SCORED test rows, the same for all."""
    if name in DRAWN:
        return limit(_drawn(task, name)[1], SCORED, 0, "scored rows")
    return limit(read_examples(find_file(f"{name}_test.tsv.gz", "kshot", None), task), SCORED, 0, "scored rows")


def _published(task: PromptTask, name: str, count: int, split: int, part: str) -> list[Example]:
    where = {"k": str(count), "seed": str(split), "split": part}
    return read_examples(find_file(f"{name}.tsv.gz", "kshot", None), task, where)


def _drawn(task: PromptTask, name: str) -> tuple[list[Example], list[Example]]:
    """(rows to train and tune on, rows to score)."""
    rows = read_examples(find_file(str(task.train), name, None), task)
    if name == "agnews":
        return rows, read_examples(find_file(str(task.validation), name, None), task)
    held = {example.place for example in limit(rows, HELD, 0, "test rows")}
    return [row for row in rows if row.place not in held], [row for row in rows if row.place in held]
