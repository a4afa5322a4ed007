"""The tables that docs/tables.py makes from the code are those in the docs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "tables.py"))


@pytest.mark.parametrize(("page", "name"), SCRIPT["TABLES"])
def test_a_table_is_that_of_the_code(page: str, name: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert SCRIPT["with_table"](text, name, SCRIPT["TABLES"][page, name]()) == text, (
        "run: python docs/tables.py --write"
    )


def test_a_page_without_the_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 places for the table options"):
        SCRIPT["with_table"]("no marks", "options", "")
