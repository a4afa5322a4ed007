"""The last lines of a run say what its summary says, and their commands run."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockzo.finetune import Settings, finetune
from blockzo.finetune.closing import bars, closing, curve, following, method, won
from tests.finetune.process import blockzo

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]


def result(before: dict[str, float], after: dict[str, float], kind: str = "causal") -> dict[str, Any]:
    settings = {"task": "lm" if "perplexity" in after else "sst2", "objective": "loss"}
    return {
        "kind": kind,
        "before": {"rows": 400, **before},
        "after": {"rows": 400, "loss": 0.5, **after},
        "settings": settings,
    }


def test_the_gain_is_over_the_better_of_plain_and_calibrated() -> None:
    told = won(result({"accuracy": 0.5, "calibrated_accuracy": 0.69}, {"accuracy": 0.77}))
    assert told.startswith("Won: +8.0 points of accuracy over calibrated zero-shot (0.690 to 0.770)")
    # sqrt(0.69 * 0.31 / 400 + 0.77 * 0.23 / 400)
    assert "on 400 held-out rows" in told and "up to 3.1 points" in told
    told = won(result({"accuracy": 0.7, "calibrated_accuracy": 0.69}, {"accuracy": 0.77}))
    assert told.startswith("Won: +7.0 points of accuracy over zero-shot (0.700 to 0.770)")
    told = won(result({"accuracy": 0.5}, {"accuracy": 0.77}, "head"))
    assert "over the untrained head (0.500" in told


def test_what_was_not_won_is_said() -> None:
    assert won(result({"accuracy": 0.7}, {"accuracy": 0.71})).startswith("Nothing to speak of was won: +1.0 points")
    assert won(result({"accuracy": 0.7}, {"accuracy": 0.5})).startswith("Lost: -20.0 points")


def test_language_modelling_speaks_of_perplexity() -> None:
    told = won(result({"perplexity": 30.0}, {"perplexity": 20.0}))
    assert "Perplexity was 30.00 before, 20.00 after" in told


def test_curves_are_bars_from_lowest_to_highest() -> None:
    assert bars([0.0, 0.5, 1.0]) == "▁▅█" and bars([2.0, 2.0]) == "▁▁"
    lines = [{"eval_rows": 8, "accuracy": a, "eval_loss": 1 - a} for a in (0.5, 0.6, 0.75)]
    assert curve(lines)[0] == "held-out accuracy  0.500 ▁▄█ 0.750  (8 rows)"
    assert curve(lines[:2]) == []


def test_only_what_is_not_usual_is_told_of_the_method() -> None:
    settings = Settings("m", method="tree", levels="0,8", one_sided=True, split="head", seed=3, lr="1e-6")
    told = method(settings.as_dict())
    assert told[:2] == ["--method", "tree"] and "--seed" not in told and "--batch" not in told
    assert shlex.join(told).endswith("--split head --one-sided --levels 0,8 --lr 1e-6")


def test_a_run_is_told_of_as_it_was(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = ["--template", "{text} It was {label}.", "--labels", "0=terrible,1=great"]
    files = ["--train", rows(40), "--validation", rows(16, "held-out.tsv")]
    done = blockzo("finetune", "--model", tiny("llama"), "--task", "sst2", *own, *files, "--steps", 4, "--output", out)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert done.stdout.rstrip().endswith(closing(summary, lines))
    assert f"a journal of {summary['journal_bytes'] / 1000:,.1f} KB" in done.stdout
    memory = summary["memory"]
    assert memory["weights"] >= memory["trained"] == 4 * summary["parameters"]
    assert all(memory[name] is None or memory[name] > memory["weights"] for name in ("inference", "training"))
    commands = re.findall(r"^    blockzo (.*)$", done.stdout, flags=re.MULTILINE)
    assert len(commands) == 2 + (summary["best"]["step"] != 4)
    places = {name: tmp_path / name for name in ("best", "rebuilt", "held-out.tsv")}
    places |= {"mine.tsv": tmp_path / "rows.tsv", "runs/mine": tmp_path / "mine"}
    for command in commands:
        told = blockzo(*(places.get(word, word) for word in shlex.split(command)))
        assert told.returncode == 0, told.stderr
    assert (tmp_path / "rebuilt" / "model.safetensors").read_bytes() == (
        out / "model" / "model.safetensors"
    ).read_bytes()
    # the same settings on the same rows and seed are the same run
    mine = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert mine["final_digest"] == summary["final_digest"]
    # the run on own data, in turn, says how to score what it made
    score = following(mine)[-1].splitlines()[-1].removeprefix("    blockzo ")
    told = blockzo(*shlex.split(score), "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["scores"] == mine["after"]


def test_score_it_again_means_the_same_rows_in_the_same_way(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = [{"q": f"a film {i} " + "so good " * (i % 9), "a": f" is {i % 4}", "k": i % 2} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in text))
    told = Settings(
        str(tiny("llama")),
        "sft",
        str(path),
        columns="prompt=q,completion=a",
        metrics="f1",
        max_new_tokens=2,
        train_where="k=1",
        holdout=9,
        final_rows=7,
        max_length=14,
        seed=5,
        dtype="bfloat16",
        steps=1,
        lr="1e-2",
        batch=4,
    )
    result = finetune(told, tmp_path / "out")
    command = following(result)[-1].splitlines()[-1].removeprefix("    blockzo ")
    again = blockzo(*shlex.split(command), "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["data"] == result["data"]["validation"] and found["scores"] == result["after"]


@pytest.mark.parametrize("trained", [100, 10**6])
def test_a_journal_larger_than_the_trained_weights_is_owned_up_to(
    tiny: Tiny, rows: Rows, tmp_path: Path, trained: int
) -> None:
    told = Settings(
        str(tiny("llama")), "custom", str(rows(40)), template="{text} it was {label}.", labels="0=bad,1=good", steps=1
    )
    summary = copy.deepcopy(finetune(told, tmp_path / "out"))
    summary["memory"]["trained"] = trained
    assert ("which are 0.1 KB themselves" in closing(summary)) == (trained == 100)
