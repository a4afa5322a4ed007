"""Clients whose rows the data or code of one's own tell: users of conversations and texts, partitioners as of flwr-datasets."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockzo.finetune import Settings
from blockzo.finetune.errors import UserError
from blockzo.finetune.prepare import prepare
from blockzo.journal.file import Journal
from blockzo.simulate import Federation, resume, simulate
from blockzo.simulate.partitioner import owners

Tiny = Callable[[str], Path]
USERS = 5


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, Any]:
    """Prompts and completions of five users, under other names of columns."""
    path = tmp_path / "answers.jsonl"
    rows = [{"who": f"u{i % USERS}", "ask": f"story {i} is", "reply": " very good", "n": i} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "sft",
        "train": str(path),
        "columns": "prompt=ask,completion=reply,user=who",
        "holdout": 6,
        "batch": 3,
        "steps": 2,
        "lr": "1e-2",
    }


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "texts.jsonl"
    rows = [{"who": f"u{i % USERS}", "text": f"{'abcde'[i % USERS] * 7} " * 6} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": "lm", "train": str(path), "max_length": 24, "batch": 3, "steps": 2, "lr": "1e-2"}


def by_user(**more: Any) -> Federation:
    return Federation(partition="column", column="user", **more)


def places(prepared: Any) -> list[list[int]]:
    """Of every client the numbers of its rows in the file, from 0."""
    return [[int(prepared.source.train[row].place.rpartition(" ")[2]) - 1 for row in part] for part in prepared.parts]


def test_users_of_written_answers(tiny: Tiny, answers: dict[str, Any], tmp_path: Path) -> None:
    told = Settings(str(tiny("llama")), **answers)
    prepared = prepare(told, owners=owners(by_user()))
    held = places(prepared)
    assert [{place % USERS for place in part} for part in held] == [{user} for user in range(USERS)]
    assert sum(map(len, held)) == 24
    result = simulate(told, by_user(sample=3), tmp_path / "run")
    assert result["clients"] == USERS and result["after"]["loss"] != result["before"]["loss"]
    with pytest.raises(UserError, match="no column 'nobody'.*look at --column"):
        simulate(told, Federation(partition="column", column="nobody"), tmp_path / "none")
    with pytest.raises(UserError, match="5 values, clients is 9.*--clients"):
        simulate(told, by_user(clients=9), tmp_path / "none")
    with pytest.raises(UserError, match="--partition label is for tasks with labels"):
        simulate(told, Federation(partition="label"), tmp_path / "none")


def test_windows_of_text_are_of_one_user(tiny: Tiny, texts: dict[str, Any], tmp_path: Path) -> None:
    told = Settings(str(tiny("llama")), **texts)
    federation = Federation(partition="column", column="who")
    prepared = prepare(told, owners=owners(federation))
    decode = prepared.loaded.tokenizer.decode
    letters = [{c for row in part for c in decode(prepared.train.ids[row]) if c in "abcde"} for part in prepared.parts]  # type: ignore[union-attr]
    # </s> and the like begin no window here
    assert letters == [{letter} for letter in "abcde"]
    # of each user the last windows are held out
    assert {c for row in prepared.held_out.ids for c in decode(row) if c in "abcde"} == set("abcde")
    plain = prepare(told)
    assert plain.parts is None and len(plain.train.ids) + len(plain.held_out.ids) >= len(prepared.train.ids)
    assert simulate(told, federation, tmp_path / "run")["clients"] == USERS
    (tmp_path / "plain.txt").write_text("the film is good\n" * 60)
    for data, reason in (
        ("plain.txt", "plain text, whose lines have no columns"),
        ("texts.jsonl", "no column 'nobody'"),
    ):
        wrong = Settings(str(tiny("llama")), **{**texts, "train": str(tmp_path / data)})
        with pytest.raises(UserError, match=reason):
            simulate(wrong, Federation(partition="column", column="nobody"), tmp_path / "none")


OWN = '''
from collections import defaultdict

def users(rows):
    found = defaultdict(list)
    for number, row in enumerate(rows):
        found[row["who"]].append(number)
    return [found[user] for user in sorted(found)]

class ByUser:
    """As flwr-datasets' NaturalIdPartitioner."""

    def __init__(self, partition_by="who"):
        self.column, self._dataset = partition_by, None

    @property
    def dataset(self):
        if self._dataset is None:
            raise AttributeError("set it first")
        return self._dataset

    @dataset.setter
    def dataset(self, found):
        from datasets import Dataset

        assert isinstance(found, Dataset) and self._dataset is None
        self._dataset = found

    def is_dataset_assigned(self):
        return self._dataset is not None

    @property
    def num_partitions(self):
        return len(set(self.dataset[self.column]))

    def load_partition(self, number):
        user = sorted(set(self.dataset[self.column]))[number]
        return self.dataset.filter(lambda row: row[self.column] == user)

made = ByUser()

def make():
    return ByUser()

def evens(rows):
    return [[0, 2], [4]]

def dropped():
    class Dropped(ByUser):
        def load_partition(self, number):
            return super().load_partition(number).select_columns(["who"])
    return Dropped()

def failing(rows):
    raise KeyError("nothing")

def empty(rows):
    return [[0], []]

def far(rows):
    return [[10**6]]

def texts(rows):
    return [["a"]]

number = 3
'''
FLOWER = """
from flwr_datasets.partitioner import DirichletPartitioner, NaturalIdPartitioner
natural = NaturalIdPartitioner(partition_by="who")
dirichlet = DirichletPartitioner(num_partitions=3, partition_by="who", alpha=5.0, min_partition_size=2)
"""


@pytest.mark.parametrize("name", ["users", "made", "make", "ByUser"])
def test_partitioners_of_ones_own(name: str, tiny: Tiny, answers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    told = Settings(str(tiny("llama")), **answers)
    by = Federation(partition=f"{tmp_path / 'own.py'}:{name}")
    assert places(prepare(told, owners=owners(by))) == places(prepare(told, owners=owners(by_user())))
    fewer = Federation(partition=by.partition, clients=2)
    assert places(prepare(told, owners=owners(fewer))) == places(prepare(told, owners=owners(by_user())))[:2]


def test_partitioners_of_flwr_datasets(tiny: Tiny, answers: dict[str, Any], tmp_path: Path) -> None:
    """Where they are installed; the stand-in above has their interface."""
    if importlib.util.find_spec("flwr_datasets") is None or importlib.util.find_spec("seaborn") is None:
        return
    (tmp_path / "flower.py").write_text(FLOWER)
    told = Settings(str(tiny("llama")), **answers)
    natural = prepare(told, owners=owners(Federation(partition=f"{tmp_path / 'flower.py'}:natural")))
    assert sorted(map(sorted, places(natural))) == sorted(places(prepare(told, owners=owners(by_user()))))
    by = Federation(partition=f"{tmp_path / 'flower.py'}:dirichlet")
    assert simulate(told, by, tmp_path / "run")["clients"] == 3


def test_a_simulation_goes_on_with_the_same_clients_alone(tiny: Tiny, texts: dict[str, Any], tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text(OWN)
    told = Settings(str(tiny("llama")), **{**texts, "steps": 4})
    by = Federation(partition=f"{code}:users")
    whole = simulate(told, by, tmp_path / "run")
    journal = Journal.open(tmp_path / "run" / "journal.bz")
    (tmp_path / "half").mkdir()
    with Journal.create(
        tmp_path / "half" / "journal.bz", journal.base_digest, journal.layout, journal.metadata
    ) as half:
        half.extend(journal.records()[:2])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half" / "metrics.jsonl").write_text("".join(lines[:3]))
    with pytest.raises(UserError, match="whose code would run; say so again with --partition .*own.py:users"):
        resume(tmp_path / "half")
    code.write_text(OWN.replace("sorted(found)", "sorted(found, reverse=True)"))
    # windows stand in the order of the clients, so that other clients are other data
    with pytest.raises(UserError, match="the train data differ"):
        resume(tmp_path / "half", given={"partition": by.partition})
    code.write_text(OWN)
    assert resume(tmp_path / "half", given={"partition": by.partition})["final_digest"] == whole["final_digest"]


def test_rows_that_went_to_another_user_are_noticed(tiny: Tiny, answers: dict[str, Any], tmp_path: Path) -> None:
    told = Settings(str(tiny("llama")), **answers)
    simulate(told, by_user(), tmp_path / "run")
    path = Path(answers["train"])
    path.write_text(path.read_text().replace('"u4"', '"u0"', 3))
    with pytest.raises(UserError, match="the clients have other rows than when the simulation began"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other", "has no 'other'; expected def other.rows."),
        ("failing", "failed .KeyError: 'nothing'.; mend it"),
        ("empty", "part 1 has no rows"),
        ("far", "part 0 has the row 1000000; expected some numbers of 0 to 23"),
        ("texts", "holds 'a'; expected numbers of rows"),
        ("dropped", "expected blockzo_row among them.*not data of its own"),
        ("number", "failed .TypeError"),
        ("evens", "made 2 parts; expected 3"),
    ],
)
def test_what_is_no_partition_is_refused(
    name: str, told: str, tiny: Tiny, answers: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    by = Federation(partition=f"{tmp_path / 'own.py'}:{name}", clients=3 if name == "evens" else None)
    with pytest.raises(UserError, match=told):
        simulate(Settings(str(tiny("llama")), **answers), by, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--partition is 'own.py'; expected one of iid.* or FILE.py:NAME"):
        Federation(partition="own.py")
