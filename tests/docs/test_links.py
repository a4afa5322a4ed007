"""Links of the Markdown files, also of those outside the site, lead to files and headings that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOME = "https://github.com/blockzo/blockzo/"


def pages() -> list[Path]:
    folders = ("docs", "data", "examples", "tests", ".github")
    return [*sorted(ROOT.glob("*.md")), *(page for name in folders for page in sorted((ROOT / name).rglob("*.md")))]


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    found = set()
    for line in re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.M
    ):
        plain = re.sub(r"[^\w\- ]", "", line.strip().lower())
        found |= {plain.replace(" ", "-"), re.sub(r"[\s-]+", "-", plain).strip("-")}
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        for kind in ("blob/main/", "tree/main/"):
            if target.startswith(HOME + kind):
                assert (ROOT / target.removeprefix(HOME + kind).partition("#")[0]).exists(), target
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}: no such heading"


BASES = (
    "",
    "blockzo",
    "blockzo/federated",
    "blockzo/federated/flower",
    "csrc",
    "docs",
    "examples/flower",
    "examples/flowertune",
)
PLACES = re.compile(r"(?<![\w/.$~{<-])[\w-]+/(?:[\w.-]+/)*[\w.-]*\.(?:py|cpp|cu|cuh|inl|sh|csv|md)\b")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_are_there(page: Path) -> None:
    """A page that names a file of the repository goes with it when it moves."""
    if "lab" in page.parts or page.name == "CHANGELOG.md":
        return
    for name in PLACES.findall(re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))):
        if name.split("/")[0] in ("runs", "FOLDER") or "NAME" in name or "counting" in name:
            continue
        assert any((base / name).exists() for base in (page.parent, *(ROOT / base for base in BASES))), name
