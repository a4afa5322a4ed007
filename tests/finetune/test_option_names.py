"""What a command line gets wrong is named as it was typed: every option of every command, with values it cannot have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from blockzo.cli import main as cli
from blockzo.cli.app import app

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
ANYTHING = "every value is one"
"""Of options that no value is wrong for (switches, and text that is only compared)."""

COUNT = ("0", "-3", "1.5", "none")
WRONG: dict[str, tuple[str, ...] | str] = {
    "--model": ("no/such/model", "gone.gguf"),
    "--task": ("sst9", ""),
    "--train": ("gone.tsv",),
    "--validation": ("gone.tsv",),
    "--data-dir": ("gone",),
    "--template": ("no column", "{nothing} {label}", "{text"),
    "--labels": ("0=bad", "bad", "0=bad,0=good", "0=bad,1=bad"),
    "--control-tokens": ANYTHING,
    "--label-column": ("nothing", "text", ""),
    "--text-column": ("nothing", ""),
    "--train-where": ("nothing=1", "nothing"),
    "--train-rows": COUNT,
    "--shots": (*COUNT, "1000"),
    "--holdout": (*COUNT, "1000"),
    "--final-rows": COUNT,
    "--max-length": (*COUNT, "2", "1000000"),
    "--overflow": ("ignore",),
    "--device": ("gpu", "cuda:", "cuda:999", ""),
    "--peft": ("prefix:r=2", "", "lora:r=0", "lora:targets=nothing"),
    "--quantize": ("int8", "int3", ""),
    "--columns": ("text", "=text", "text=nothing"),
    "--metrics": ("bleu", "f1"),
    "--max-new-tokens": COUNT,
    "--objective": ("bleu", "f1"),
    "--reward": ("own.py", "gone.py:f", ""),
    "--dtype": ("int8",),
    "--head": ("cls",),
    "--trainable": ("nothing*", ""),
    "--fallback-model": ANYTHING,
    "--method": ("adam", ""),
    "--blocks": (*COUNT, "1000"),
    "--split": ("a", "", "9", "1.5", "-1", "0", "nan", "2,1", "head,head"),
    "--outer": COUNT,
    "--inner": COUNT,
    "--variant": ("x",),
    "--one-sided": ANYTHING,
    "--per-example": ANYTHING,
    "--directions": COUNT,
    "--levels": ("a", "1", "0,0", "1,-1", "1,0.5", "inf,1"),
    "--lr": ("fast", "nan", "inf", "-1", "1,2,3", ""),
    "--schedule": ("step",),
    "--warmup": ("-1", "none"),
    "--eps": ("0", "-1", "nan", "1e-60", "1,2,3", ""),
    "--distribution": ("uniform",),
    "--rank": (*COUNT, "65"),
    "--weight-decay": ("-1", "nan", "inf", "none"),
    "--stochastic-rounding": ANYTHING,
    "--moved": ("bfloat16",),
    "--in-place": ANYTHING,
    "--batch": COUNT,
    "--steps": COUNT,
    "--eval-every": COUNT,
    "--eval-rows": COUNT,
    "--pool": COUNT,
    "--seed": ("-1", str(1 << 64), "none"),
    "--threads": (*COUNT, str(1 << 40)),
    "--output": ("/proc/nowhere", "/dev/null"),
    "--resume": ANYTHING,
    "--dry-run": ANYTHING,
    "--json": ANYTHING,
    "--partial": ANYTHING,
    "--trust-remote-code": ANYTHING,
    "--clients": (*COUNT, "1000"),
    "--sample": ("-1", "9", "none"),
    "--rounds": COUNT,
    "--local-steps": (*COUNT, str(1 << 40)),
    "--partition": ("x", "column"),
    "--alpha": ("0", "-1", "nan", "none", "inf"),
    "--column": ("nothing",),
    "--engine": ("x",),
    "--logit-adjustment": ANYTHING,
    "--own-directions": ANYTHING,
    "--aggregate": ("x",),
    "--aggregate-options": ("x", "x=1", "=1", "byzantine=-1", "byzantine=0.5", "byzantine=none", "keep=0"),
    "--trim": ("-1", "0.5", "nan", "none"),
    "--weighting": ("x",),
    "--seed-pool": ("-1", "1", "none"),
    "--privacy": ("x",),
    "--clip": ("0", "-1", "nan", "none"),
    "--noise-multiplier": ("0", "-1", "nan", "none"),
    "--delta": ("0", "-1", "1", "nan", "none"),
    "--secure-sum": ANYTHING,
    "--config": ("gone.yaml",),
    "--base": ("nothing",),
    "--policy": ("gone.json", ""),
    "--drop": ("-1", "1", "nan", "none"),
    "--liars": ("-1", "1", "nan", "none"),
    "--quick": ANYTHING,
    "--only": ANYTHING,
    "--list": ANYTHING,
    "--plot": ANYTHING,
    "--no-save": ANYTHING,
}
ALONG = {
    "--levels": ["--method", "tree", "--split", "0.5"],
    "--directions": ["--method", "spsa"],
    "--split": ["--method", "mezo"],
    "--blocks": ["--method", "mezo"],
    "--column": ["--partition", "column"],
    "--aggregate": [],
    "--aggregate-options": ["--aggregate", "krum"],
    "--trim": ["--aggregate", "trimmed-mean"],
    "--data-dir": ["--task", "rte"],
    "--seed-pool": ["--method", "spsa", "--directions", "4"],
    "--clip": ["--privacy", "local", "--noise-multiplier", "1", "--weighting", "equal"],
    "--noise-multiplier": ["--privacy", "local", "--clip", "1", "--weighting", "equal"],
    "--delta": ["--privacy", "local", "--clip", "1", "--noise-multiplier", "1", "--weighting", "equal"],
    "--privacy": ["--clip", "1", "--noise-multiplier", "1", "--weighting", "equal"],
}
"""What has to be said beside an option for its value to matter."""
WITHOUT = {
    ("", "--holdout"): ["--validation"],
    ("", "--data-dir"): ["--train", "--validation"],
    ("evaluate", "--train"): ["--validation"],
    ("evaluate", "--train-where"): ["--validation"],
}
"""What must not be said, as it would go before it."""


def options_of(command: str) -> list[str]:
    return [p.opts[0] for p in COMMANDS[command].params if p.param_type_name == "option" and p.opts[0] != "--help"]


def cases() -> list[Any]:
    """Every wrong value of finetune's options; where another command has the same option, one of them unless with --slow."""
    found = []
    for command in ("finetune", "simulate", "evaluate"):
        for option in options_of(command):
            wrong = WRONG.get(option, ANYTHING)
            if isinstance(wrong, str):
                continue
            known = command != "finetune" and option in options_of("finetune")
            for number, value in enumerate(wrong):
                marks = [pytest.mark.slow] if known and number else []
                found.append(pytest.param(command, option, value, marks=marks))
    return found


def test_every_option_of_every_command_is_walked() -> None:
    assert {option for command in COMMANDS for option in options_of(command)} == set(WRONG)


@pytest.fixture
def call(capsys: Any, monkeypatch: Any) -> Callable[..., tuple[int, str]]:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["blockzo", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "1000")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(("command", "option", "value"), cases())
def test_a_wrong_value_is_refused_by_the_option_s_name(
    call: Any, tiny: Tiny, rows: Rows, tmp_path: Path, command: str, option: str, value: str
) -> None:
    out = tmp_path / "out"
    told: dict[str, str] = {
        "--task": "custom",
        "--template": "{text} it was {label}.",
        "--labels": "0=bad,1=good",
        "--train": str(rows(40)),
        "--validation": str(rows(16, "held.tsv")),
        "--batch": "4",
    }
    for name in WITHOUT.get((command, option), WITHOUT.get(("", option), ())):
        del told[name]
    model: list[str] = [str(tiny("llama"))] if command == "evaluate" else ["--model", str(tiny("llama"))]
    if command != "evaluate":
        told |= {"--output": str(out), "--lr": "1e-3", "--steps" if command == "finetune" else "--rounds": "1"}
    if command == "simulate":
        told |= {"--clients": "4", "--sample": "2"}
    along = ALONG.get(option, [])
    told |= dict(zip(along[::2], along[1::2], strict=True))
    told[option] = value
    own = set(options_of(command))
    given = [f"{name}={text}" for name, text in told.items() if name in own]
    if option == "--model":
        model = []
    code, err = call(command, *model, *given)
    said = err.replace("\n", " ")
    assert code == 2, (code, said[-2000:])
    assert "Traceback" not in err and option in said, said
    assert not out.exists(), "a refused run leaves no folder"
