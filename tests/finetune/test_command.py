"""One field of a dataclass is one option of the command line, with all that belongs to it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any

import pytest
import typer
from typer.main import get_command

from blockzo.cli.app import app
from blockzo.cli.command import Command, options_from, those_of, typed
from blockzo.cli.config_file import read_config
from blockzo.cli.shared import Config
from blockzo.finetune.errors import UserError
from blockzo.finetune.option import MODEL, check, free_on_resume, listed, named, option, options_of
from blockzo.finetune.settings import Settings
from blockzo.simulate.settings import Federation
from tests.finetune.process import environment

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
FIELDS = [(form, field.name) for form in (Settings, Federation) for field in fields(form)]


@pytest.mark.parametrize(("form", "name"), FIELDS)
def test_every_field_is_an_option_with_help(form: Any, name: str) -> None:
    found = options_of(form)[name]
    assert found.help.endswith((".", '"')) and found.group and found.commands
    assert "{choices}" not in found.help
    for command in found.commands:
        (parameter,) = (p for p in COMMANDS[command].params if p.name == name)
        assert parameter.help or parameter.param_type_name == "argument"
    for choice in found.choices or ():
        assert choice in found.help


@pytest.mark.parametrize("command", ["finetune", "simulate", "evaluate"])
def test_help_shows_every_option_under_its_heading(command: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    app([command, "--help"], standalone_mode=False)
    text = capsys.readouterr().out
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option":
            assert f"{max(parameter.opts, key=len)} " in text
    for form in (Settings, Federation):
        assert all(o.group in text for o in options_of(form).values() if command in o.commands)
    assert "--no-" not in text, "no column for what every switch has"


@dataclass(frozen=True)
class More(Settings):
    """Settings with three more fields, as somebody would add them."""

    warmth: str = option("How warm: {choices}.", MODEL, "mild", choices={"mild": "", "hot": "for tea"}, free=True)
    cups: int | None = option("So many cups.", MODEL, None, least=1, most=9, stands_for=("vessels",))
    milk: bool = option("With milk.", MODEL, False)


def made() -> Any:
    program = typer.Typer(add_completion=False)
    seen: list[tuple[More, dict[str, Any]]] = []

    @program.callback()
    def _program() -> None: ...

    @program.command(cls=Command)
    @options_from(More, command="finetune")
    def finetune(context: typer.Context, config: Config = None, **chosen: Any) -> None:
        seen.append((More(**those_of(More, chosen)), typed(context)))
        if chosen["cups"] == 7:
            raise UserError("vessels is 7, and milk=0")

    return program, seen


def test_one_field_more_is_one_option_more(tmp_path: Any, capsys: Any) -> None:
    program, seen = made()
    program(["finetune", "--warmth", "hot", "--milk"], standalone_mode=False)
    assert (seen[0][0].warmth, seen[0][0].cups, seen[0][0].milk) == ("hot", None, True)
    assert seen[0][1] == {"warmth": "hot", "milk": True}
    file = tmp_path / "tea.yaml"
    file.write_text("cups: 3\nwarmth: mild\n")
    program(["finetune", "--config", str(file), "--warmth=hot"], standalone_mode=False)
    assert (seen[1][0].warmth, seen[1][0].cups) == ("hot", 3)
    program(["finetune", "--help"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "--cups" in text and "mild or hot (for tea)" in " ".join(text.replace("│", " ").split())
    assert free_on_resume(More) == free_on_resume(Settings) | {"warmth"}
    assert list(inspect.signature(More).parameters)[-3:] == ["warmth", "cups", "milk"]
    assert More.from_dict(More("model", cups=2).as_dict()) == More("model", cups=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--warmth", "cold"], "--warmth is 'cold'; expected one of mild, hot"),
        (["--cups", "0"], "--cups is 0; expected 1 or more"),
        (["--cups", "12"], "--cups is 12; expected 9 at most"),
        (["--cups", "7"], "--cups is 7, and --milk 0"),
    ],
)
def test_its_errors_name_it(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        made()[0](["finetune", *arguments], standalone_mode=False)
    assert str(error.value) == told


def test_a_file_cannot_give_it_what_it_does_not_take(tmp_path: Any) -> None:
    (tmp_path / "tea.yaml").write_text("\ncups: many\n")
    # the end is typer's words, which change between its versions
    with pytest.raises(UserError, match="tea.yaml, line 2: --cups: .*valid integer"):
        made()[0](["finetune", "--config", str(tmp_path / "tea.yaml")], standalone_mode=False)


def test_completion_is_not_disturbed_by_a_file() -> None:
    context = type("Context", (), {"resilient_parsing": True})()
    assert read_config(context, "no/such/file") == "no/such/file"


def test_the_shell_completes_choices() -> None:
    told = {"_BLOCKZO_COMPLETE": "complete_bash", "COMP_WORDS": "blockzo finetune --schedule c", "COMP_CWORD": "3"}
    command = [sys.executable, "-c", "from blockzo.cli.main import main; main()"]
    done = subprocess.run(command, env={**environment(), **told}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["constant", "cosine"], done.stderr


def test_wrong_usage_is_one_line_that_says_where_help_is(capsys: Any, monkeypatch: Any) -> None:
    from blockzo.cli import main as cli

    for arguments, told in (
        (["finetune", "--stepz", "3"], "--stepz"),
        (["nothing"], "nothing"),
        (["evaluate"], "MODEL"),
        (["finetune", "--steps", "none"], "--steps"),
        (["finetune", "extra"], "extra"),
        (["simulate", "--rounds"], "--rounds"),
    ):
        monkeypatch.setattr(sys, "argv", ["blockzo", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == ""
        # an argument is named in capitals by typer 0.20, as it is by 0.29
        assert err.startswith("error: ") and told.lower() in err.lower() and err.count("\n") == 1, err
        # click does not say with every error which command it is of
        assert "--rounds" in told or err.endswith(
            f"(see blockzo{' ' + arguments[0] if told != 'nothing' else ''} --help)\n"
        ), err


def test_choices_and_names_are_told() -> None:
    assert (
        listed({}) == "" and listed({"a": ""}) == "a" and listed({"a": "x", "b": "", "c": "y"}) == "a (x), b or c (y)"
    )
    assert named("max_length") == "--max-length"
    check(More("model"))


def test_the_working_directory_is_free(tmp_path: Any) -> None:
    """Help needs nothing of the place it is asked in."""
    done = subprocess.run(
        [sys.executable, "-m", "blockzo", "simulate", "--help"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "--rounds" in done.stdout and not os.listdir(tmp_path)
