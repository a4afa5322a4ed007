"""`blockzo demo`: its own model, rows and method, unless something else is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blockzo.cli.demo import METHOD, arguments
from blockzo.finetune.data.read import find_file, read_examples
from blockzo.finetune.data.tasks import TASKS
from tests.finetune.process import REPOSITORY, blockzo

FEW = "--train-rows 64 --final-rows 24 --eval-rows 24 --steps 6 --eval-every 2 --max-length 64 --levels 0,16".split()
WORDS = "0=terrible,1=great,2=bad,3=good,4=film,5=story"


def test_a_short_demonstration_ends_with_what_was_won(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = blockzo("demo", "--model", tiny("llama"), "--output", out, "--labels", WORDS, *FEW)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["task"], summary["steps"], summary["settings"]["levels"]) == ("trec", 6, "0,16")
    # the layers run once a batch, unmoved: a base loss, and one for each of 16 directions of the last norm
    assert summary["forwards"] == 6 * 17
    assert summary["parameters"] == summary["blocks"][1]["parameters"] and summary["blocks"][0]["parameters"] == 0
    assert "left" in done.stderr and "step 6/6" in done.stderr
    assert "held-out accuracy" in done.stdout and "▁" in done.stdout
    for sentence in (
        "points of accuracy over",
        "Cost: 6 steps, 102 losses",
        "Next: ",
        "Your own data",
        "--train mine.tsv",
    ):
        assert sentence in done.stdout
    assert (out / "curve.png").read_bytes()[:4] == b"\x89PNG"
    again = blockzo("demo", "--resume", "--output", out)
    assert again.returncode == 0, again.stderr


def test_what_is_given_wins_and_another_method_has_its_own_settings() -> None:
    told = arguments(["--steps", "5"])
    assert told[-2:] == ["--steps", "5"] and told.index("--steps") < len(told) - 2
    assert set(METHOD) <= set(told)
    assert "--levels" not in arguments(["--method", "auto"]) and "--lr" not in arguments(["--method=auto"])
    assert arguments(["--resume"]) == ["--output", "runs/demo", "--resume"]


@pytest.mark.parametrize("task", ["sst2", "trec"])
def test_the_package_carries_the_rows_of_the_repository(
    task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel has no data/ folder beside it."""
    from blockzo.finetune.data import read

    monkeypatch.chdir(tmp_path)
    ready = TASKS[task]
    assert ready.train is not None and ready.validation is not None
    for file in (ready.train, ready.validation):
        inside = Path(read.__file__).parent / task / file
        assert inside.read_bytes() == (REPOSITORY / "data" / task / file).read_bytes()
        assert find_file(file, task, None) == REPOSITORY / "data" / task / file
        assert read_examples(inside, ready)
    assert (REPOSITORY / "data" / task / "README.md").is_file()
