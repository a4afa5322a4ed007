"""The README's Python and its commands run: the Python as it stands, the commands on a tiny model and few rows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockzo.cli import main as cli
from tests.finetune.process import REPOSITORY

# runs every command of the README
pytestmark = pytest.mark.heavy

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_it_fits_a_screen_or_two() -> None:
    assert len(README.splitlines()) <= 90


def test_its_python_runs_when_pasted(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(losses) == 300 and losses[-1] < losses[0] / 4
    assert (tmp_path / "run.bz").is_file()


FEW = {
    "env": "",
    "finetune": "--steps 2 --eval-rows 8 --final-rows 8 --train-rows 32 --batch 4",
    "evaluate": "--final-rows 8",
    "replay": "",
    "simulate": "--clients 4 --rounds 2 --inner 2 --eval-rows 8 --final-rows 8 --train-rows 32 --batch 4",
}


def test_its_commands_run(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    section = README.partition("Five commands")[2].partition("In Python")[0]
    found = [shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("blockzo ")]
    assert [command[1] for command in found] == list(FEW)
    model = str(tiny("llama"))
    places = {name: str(tmp_path / name) for name in ("runs", "rebuilt")} | dict.fromkeys(
        ("smollm2-135m", "minilm-l6"), model
    )
    for _, *words in found:
        told = [
            re.sub(r"^(smollm2-135m|minilm-l6|runs|rebuilt)\b", lambda name: places[name[0]], word) for word in words
        ]
        monkeypatch.setattr(sys, "argv", ["blockzo", *told, *FEW[words[0]].split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
            raise SystemExit(0)
        assert not end.value.code, told
    assert (tmp_path / "rebuilt" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "rounds" / "journal.bz").is_file()


def test_both_set_up_commands_are_there_and_executable() -> None:
    for command in ("scripts/demo.sh", "scripts/test.sh"):
        assert f"\n{command}" in README
        assert (REPOSITORY / command).stat().st_mode & 0o100
