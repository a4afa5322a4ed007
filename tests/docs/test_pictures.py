"""The drawings of docs are those that docs/pictures.py draws."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

from tests.core.test_rooms import ROOMS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_pictures_are_those_of_the_script() -> None:
    drawn = runpy.run_path(str(DOCS / "pictures.py"))["PICTURES"]
    assert {path.name for path in (DOCS / "pictures").iterdir()} == set(drawn)
    for name, draw in drawn.items():
        text = (DOCS / "pictures" / name).read_text(encoding="utf-8")
        assert text == draw(), "run: python docs/pictures.py"
        assert ElementTree.fromstring(text).tag.endswith("svg")


def test_the_rooms_are_drawn_in_the_order_that_is_held() -> None:
    lines = runpy.run_path(str(DOCS / "pictures.py"))["ROOMS"]
    heights = {name: -height for height, line in enumerate(lines) for name, _ in line}
    assert set(heights) == set(ROOMS)
    assert [heights[name] for name in ROOMS] == sorted(heights[name] for name in ROOMS)
