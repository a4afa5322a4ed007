"""Options from a YAML file: what it says, what the command line says over it, and errors with file and line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockzo.cli import main as cli
from blockzo.cli.config_file import entries
from blockzo.finetune.errors import UserError

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: Any, monkeypatch: Any) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blockzo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def config(tiny: Tiny, rows: Rows, tmp_path: Path) -> Callable[..., Path]:
    """config(*lines) -> a file that says all that a run needs, and these lines."""

    def write(*lines: str) -> Path:
        path = tmp_path / "run.yaml"
        own = (
            f"model: {tiny('llama')}",
            "task: custom",
            'template: "{text} it was {label}."',
            "labels: 0=bad,1=good",
            f"train: {rows(40)}",
            f"validation: {rows(16, 'held.tsv')}",
            "lr: [1e-3, 2e-3]  # one a block",
            "batch: 4",
            "steps: 2",
            "control_tokens: true",
            "max-length: null",
        )
        path.write_text("\n".join((*own, *lines, "")), encoding="utf-8")
        return path

    return write


def test_a_run_from_a_file_and_what_is_typed_wins(call: Call, config: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, err = call(
        *("finetune", "--config", config("stochastic-rounding: yes"), "--steps", 1, "--no-stochastic-rounding"),
        *("--output", out, "--json"),
    )
    assert code == 0, err
    settings = json.loads(text)["settings"]
    expected = {"lr": "1e-3,2e-3", "batch": 4, "steps": 1, "control_tokens": True, "stochastic_rounding": False}
    assert {name: settings[name] for name in expected} == expected
    assert settings["max_length"] is None


def test_a_file_says_what_typed_options_say(call: Call, config: Any, tmp_path: Path) -> None:
    """The same run twice: the journals hold the same records."""
    path = config("seed: 3")
    assert call("finetune", "--config", path, "--output", tmp_path / "one")[0] == 0

    typed = []
    for entry in entries(path):
        name = entry.name.replace("_", "-")
        typed += [f"--{name}"] if entry.value == "true" else [f"--{name}={entry.value}"] if entry.value else []
    assert call("finetune", *typed, "--output", tmp_path / "two")[0] == 0
    one, two = ((tmp_path / name / "journal.bz").read_bytes() for name in ("one", "two"))
    assert one == two


def test_written_answers_adapters_and_devices_from_a_file(call: Call, config: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "story {i} ?", "answer": "yes"}}\n' for i in range(9)))
    path = config("columns: [prompt=question, completion=answer]", "metrics: [f1, rouge_l]", "max-new-tokens: 2")
    kept = [
        line for line in path.read_text().splitlines() if not line.startswith(("template", "labels", "train", "valid"))
    ]
    own = (
        "device: cpu",
        "dtype: auto",
        'peft: "lora:r=2,targets=q_proj"',
        "objective: f1",
        f"train: {rows}",
        "lr: 1e-2",
    )
    kept = [line.replace("task: custom", "task: sft") for line in kept if not line.startswith("lr")]
    path.write_text("\n".join((*kept, *own, "method: mezo", "")))
    code, text, err = call("finetune", "-c", path, "--steps", 1, "--output", tmp_path / "out", "--json")
    assert code == 0, err
    found = json.loads(text)
    assert found["peft"]["targets"] == ["q_proj"] and found["device"] == "cpu"
    assert found["settings"]["columns"] == "prompt=question,completion=answer"
    assert found["settings"]["dtype"] == "float32" and {"f1", "rouge_l"} <= found["after"].keys()


def test_a_simulation_from_a_file(call: Call, config: Any, tmp_path: Path) -> None:
    path = config("clients: 4", "seed-pool: 0", "sample: 0")
    path.write_text(path.read_text().replace("steps: 2", "rounds: 1"))
    code, text, err = call("simulate", "-c", path, "--output", tmp_path / "out", "--json")
    assert code == 0, err
    found = json.loads(text)
    assert found["rounds"] == 1 and found["clients"] == 4 and found["federation"]["sample"] is None


def test_a_model_is_scored_with_the_file_of_its_run(call: Call, config: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # rows that are held out of the training file are not those that were trained on
    path = config("holdout: 7", "train-where: [label=1]", "seed: 3")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("validation")]
    path.write_text("\n".join((*lines, f"output: {out}", "")))
    code, text, err = call("finetune", "-c", path, "--json")
    assert code == 0, err
    code, found, err = call("evaluate", out / "model", "-c", path, "--json")
    assert code == 0, err
    told, scored = json.loads(text), json.loads(found)
    assert scored["data"] == told["data"]["validation"] and scored["data"]["rows"] == 7
    assert scored["scores"]["loss"] == pytest.approx(told["after"]["loss"], rel=1e-5)
    path.write_text(path.read_text() + "stepps: 3\n")
    code, _, err = call("evaluate", out / "model", "-c", path)
    assert code == 2 and "no option 'stepps'" in err


def test_resuming_takes_a_file_as_options_given_again(call: Call, config: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("finetune", "--config", config(), "--output", out)[0] == 0
    assert call("finetune", "--resume", "--config", config("threads: 1"), "--output", out)[0] == 0
    path = config()
    path.write_text(path.read_text().replace("batch: 4", "batch: 8"))
    code, _, err = call("finetune", "--resume", "--config", path, "--output", out)
    assert code == 2 and "cannot continue with other settings: --batch was 4, now 8" in err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stepps: 3", "line 12: no option 'stepps'; did you mean steps?"),
        ("clients: 3", "line 12: no option 'clients'; expected names of options: "),
        ("help: true", "line 12: no option 'help'"),
        ("config: other.yaml", "line 12: no option 'config'"),
        ("steps: 5", "line 12: steps is there twice"),
        ("max_length: 5", "line 12: max_length is there twice"),
        ("seed: none", "line 12: --seed: 'none' is not a valid integer"),
        ("in-place: perhaps", "line 12: --in-place: 'perhaps' is not a valid boolean"),
        ("schedule: step", "line 12: --schedule is 'step'; expected one of constant, linear, cosine"),
        ("eps: -1", "line 12: --eps is -1; expected positive numbers"),
        ("method: {spzo: 1}", "line 12: method has names or lists inside"),
        ("split: [[1]]", "line 12: split has names or lists inside"),
        ("? [a]\n: 1", "line 12: expected the name of an option"),
        ("split: [1", "line 13: not YAML"),
        ("just text", "not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_by_its_line(
    call: Call, config: Any, tmp_path: Path, line: str, told: str
) -> None:
    code, out, err = call("finetune", "--config", config(line), "--output", tmp_path / "out")
    assert code == 2 and out == "" and not (tmp_path / "out").exists()
    assert err.startswith(f"error: {tmp_path / 'run.yaml'}, ") and told in err and len(err.splitlines()) == 1, err


def test_what_was_typed_is_not_blamed_on_the_file(call: Call, config: Any, tmp_path: Path) -> None:
    code, _, err = call("finetune", "--config", config("schedule: linear"), "--schedule", "step", "--output", tmp_path)
    assert code == 2 and err.startswith("error: --schedule is 'step'"), err


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    with pytest.raises(UserError, match="--config .*run.yaml cannot be read: No such file"):
        list(entries(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        list(entries(path))
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="line 1: expected lines like `steps: 100`"):
        list(entries(path))
    path.write_text("")
    assert list(entries(path)) == []
