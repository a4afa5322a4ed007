"""The commands and the Python of the Markdown pages.

Code is fenced and names its language. In `sh` each line is a command; a comment line before the fence may say what it needs
(`<!-- needs: two hosts -->`). Commands in running text stand between backticks.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"sh", "python", "toml", "text", "json", "yaml"}
INLINE = (
    "blockzo ",
    "python benchmarks/",
    "python -m ",
    "python docs/",
    "scripts/",
    "pip install ",
    "pytest ",
    "torchrun ",
)
NO_COMMANDS = {"blockzo noise v1"}
FENCE = re.compile(r"(?:^<!-- needs: (?P<needs>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Command:
    """A line that a reader may type."""

    page: str
    text: str
    needs: str | None = None

    @property
    def words(self) -> list[str]:
        """Without settings of the environment before it."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
            words = words[1:]
        return words


def pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str, str | None]]:
    """(language, code, needs) of every fenced block."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [(block["language"], block["code"], block["needs"]) for block in found]


def indented(page: Path) -> list[str]:
    """Lines of code blocks that are indented instead of fenced; a list's continuation is none."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found, in_list = [], False
    for before, line in zip(["", *text.splitlines()], text.splitlines(), strict=False):
        if re.match(r"\s*([*-]|\d+\.) ", line):
            in_list = True
        elif line and not line.startswith(" "):
            in_list = False
        if line.startswith("    ") and not before.strip() and not in_list:
            found.append(line)
    return found


def lines(code: str) -> list[str]:
    """Of a shell: a backslash at the end and an open quote go on in the next line."""
    found, begun = [], ""
    for line in code.replace("\\\n", " ").splitlines():
        begun = f"{begun} {line.strip()}".strip()
        if begun.startswith("#"):
            begun = ""
        try:
            complete = bool(shlex.split(begun, comments=True))
        except ValueError:
            complete = False
        if complete:
            found.append(begun)
            begun = ""
    assert not begun, f"a quote stays open: {begun}"
    return found


def commands(page: Path) -> list[Command]:
    name = page.relative_to(ROOT).as_posix()
    text = page.read_text(encoding="utf-8")
    found = []
    for language, code, needs in blocks(page):
        if language == "sh":
            found += [Command(name, line, needs) for line in lines(code)]
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        words = " ".join(span.split())
        if words.startswith(INLINE) and len(words.split()) > 1 and "..." not in words and words not in NO_COMMANDS:
            found.append(Command(name, words))
    return found
