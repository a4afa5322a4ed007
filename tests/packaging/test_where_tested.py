"""Every module has a test of its name, or a line in tests/README.md that says where it is tested."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOORS = ("__init__", "__main__")


def modules() -> dict[str, str]:
    """Module without `blockzo.` -> its stem."""
    found = {}
    for folder, prefix in ((ROOT / "blockzo", ()), (ROOT / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            if path.stem not in DOORS:
                found[".".join((*prefix, *path.relative_to(folder).with_suffix("").parts))] = path.stem
    return found


def rows(text: str) -> list[tuple[list[str], list[str]]]:
    """(modules, files) of every line of the table."""
    table = text.partition("## Where a module is tested")[2].partition("\n## ")[0]
    lines = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([\w.]+)`", names), re.findall(r"`([\w./]+)`", files)) for names, files in lines]


def untold(known: dict[str, str], stems: set[str], table: list[tuple[list[str], list[str]]]) -> set[str]:
    told = {name for names, _ in table for name in names}
    return {name for name, stem in known.items() if stem not in stems and name not in told}


TABLE = rows((ROOT / "tests" / "README.md").read_text(encoding="utf-8"))
STEMS = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}


def test_every_module_is_tested_somewhere() -> None:
    assert not untold(modules(), STEMS, TABLE), "write test_NAME.py, or a line into the table of tests/README.md"


def test_the_table_names_what_is_there_and_once() -> None:
    counts = Counter(name for names, _ in TABLE for name in names)
    assert not [name for name, count in counts.items() if count > 1]
    assert set(counts) <= set(modules()), "modules that are no more"
    for names, files in TABLE:
        assert files, names
        for file in files:
            assert (ROOT / "tests" / file).is_file(), file


def test_a_module_without_a_line_is_seen() -> None:
    table = rows(
        "## Where a module is tested\n\n| modules | tested in |\n|---|---|\n| `a.b`, `a.c` | `core/test_d.py` |\n"
    )
    assert table == [(["a.b", "a.c"], ["core/test_d.py"])]
    assert untold({"a.b": "b", "a.d": "d", "a.e": "e"}, {"d"}, table) == {"a.e"}
