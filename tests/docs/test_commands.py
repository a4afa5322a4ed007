"""Every command of the pages is one that a reader can type: its program, its files and its options are there, or the page says
what it needs. The README's commands are run by tests/finetune/test_readme.py.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import blockzo as bz
from tests.docs.commands import FENCE, LANGUAGES, ROOT, Command, blocks, commands, indented, pages
from tests.finetune.process import environment

PYTEST = {"-q", "-x", "-s", "-n", "-k", "-m", "--slow", "--fast", "--no-skips"}
# pytest-benchmark's
PYTEST |= {f"--benchmark-{name}" for name in ("only", "autosave", "compare", "compare-fail", "max-time", "min-rounds")}
each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())


@cache
def options_of(command: str) -> frozenset[str]:
    """As the real parser tells them."""
    line = [sys.executable, "-m", "blockzo", command, "--help"]
    done = subprocess.run(line, env={**environment(), "COLUMNS": "300"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout))


def given(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]


def options_in(source: Path, words: list[str]) -> None:
    text = source.read_text(encoding="utf-8")
    shared = ""
    if (
        "from benchmarks.parts import run" in text
    ):  # some of the command line stands there, numbers are keywords of the call
        shared = (ROOT / "benchmarks" / "parts.py").read_text(encoding="utf-8")
    for option in given(words):
        here = f'"{option}"' in text or f"{option})" in text or f"= {option} " in text
        there = shared and (f'"{option}"' in shared or f'"{option[2:]}"' in shared or f"{option[2:]}=" in text)
        assert here or there, f"{source.name} knows no {option}"


def check_blockzo(words: list[str]) -> None:
    if words[0] in ("--help", "--version", "COMMAND"):
        return
    if words[0] == "bench" and len(words) > 1 and not words[1].startswith("-"):
        return options_in(ROOT / "benchmarks" / f"{words[1]}.py", words[2:])
    known = options_of(words[0])
    for option in given(words[1:]):
        assert option in known, f"blockzo {words[0]} has no {option}"


def check_pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith(("tests", "benchmarks/")):
            assert (ROOT / word.split("::")[0]).exists(), word
    assert set(given(words)) <= PYTEST, given(words)


def check_python(words: list[str]) -> None:
    if words[0] == "-m" and words[1] == "pytest":
        check_pytest(words[2:])
    elif words[0] == "-m":
        home = find_spec(words[1])
        if home is not None and home.origin is None:
            home = find_spec(f"{words[1]}.__main__")
        assert home is not None and home.origin is not None, words[1]
        if words[1].startswith(("blockzo", "tests")):
            options_in(Path(home.origin), words[2:])
    else:
        assert (ROOT / words[0]).is_file(), words[0]
        options_in(ROOT / words[0], words[1:])


def check_script(program: str, words: list[str]) -> None:
    file = ROOT / program
    assert file.is_file() and file.stat().st_mode & 0o100, program
    if program == "scripts/demo.sh":
        check_blockzo(["finetune", *words])
    elif program == "scripts/test.sh":
        check_pytest(words)
    else:
        options_in(file, words)


def check_pip(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"(?:\.|blockzo)\[([\w,]+)\]", " ".join(words)):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.M), f"no extra {extra}"


def check(command: Command) -> None:
    if command.needs:
        return
    program, *words = command.words
    if program == "blockzo":
        check_blockzo(words)
    elif program == "python":
        check_python(words)
    elif program == "pytest":
        check_pytest(words)
    elif program == "pip":
        check_pip(words)
    elif program.startswith("scripts/"):
        check_script(program, words)
    else:
        raise AssertionError(f"{program}: no test knows it; say before the fence what it needs: <!-- needs: ... -->")


@each_page
def test_commands_can_be_typed(page: Path) -> None:
    for command in commands(page):
        for part in command.text.split(" && "):
            check(Command(command.page, part, command.needs))


@each_page
def test_code_is_fenced_and_names_its_language(page: Path) -> None:
    assert not indented(page)
    for language, code, _ in blocks(page):
        assert language in LANGUAGES, code[:60]


@each_page
def test_lists_and_tables_begin_after_a_blank_line(page: Path) -> None:
    """GitHub does without; the site makes one paragraph of them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8")).splitlines()
    for before, line in zip(text, text[1:], strict=False):
        if re.match(r"([*-]|\d+\.) ", line) or (line.startswith("|") and not before.startswith("|")):
            assert not before.strip() or re.match(r"([*-]|\d+\.|  ) ?|<!--", before), f"{before!r} before {line!r}"


@each_page
def test_python_is_python_and_its_names_are_there(page: Path) -> None:
    for language, code, _ in blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bz":
                    assert hasattr(bz, node.attr), node.attr


def test_the_checks_see_what_is_wrong() -> None:
    wrong = (
        "blockzo finetune --no-such-option 1",
        "python benchmarks/absent.py",
        "python benchmarks/table.py --no-such-option",
        "python -m blockzo.absent",
        "scripts/absent.sh",
        "pip install '.[absent]'",
        "python -m pytest tests/absent",
        "flwr run examples/flower",
    )
    for text in wrong:
        with pytest.raises(AssertionError):
            check(Command("-", text))
    check(Command("-", "flwr run examples/flower", "Flower"))
