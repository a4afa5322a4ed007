"""What comes from outside costs what its bytes cost, and never reaches a terminal raw."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockzo.journal import outside


@given(st.text())
def test_every_text_is_printed_harmlessly(text: str) -> None:
    shown = outside.printable(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    if text.isprintable():
        assert shown == text
    assert str(outside.Refusal(text)) == shown


def test_long_texts_are_cut() -> None:
    assert len(outside.printable("x" * 10**7)) < outside.MOST_TEXT + 40
    assert len(outside.printable("\x1b" * 10**7)) < 4 * outside.MOST_TEXT + 40
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in ("x" * 10**7, {str(k): "y" * 1000 for k in range(1000)}, 10**5000, ["\x1b[2J"] * 10**6, deep):
        assert len(outside.shown(value)) < 400 and outside.shown(value).isprintable()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_json_survives(value: object) -> None:
    data = outside.write_json(value, "it")
    assert outside.read_json(data, "it") == json.loads(data) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b"[" + b"[]," * 10**6 + b"[]]", "more than .* parts"),
        (b'"' + b"x" * (outside.MOST_JSON + 1) + b'"', "expected at most"),
        (b"NaN", "NaN is no JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"1" * 5000, "cannot be read"),
        (b'"' + b'\\"' * 10**6, "cannot be read"),
    ],
)
def test_json_beyond_the_bounds(data: bytes, message: str) -> None:
    with pytest.raises(outside.Refusal, match=message):
        outside.read_json(data, "it")


def test_brackets_inside_strings_are_text() -> None:
    value = ["[" * 1000, '"[' * 500, "\\" * 3]
    assert outside.read_json(json.dumps(value).encode(), "it") == value


def test_inflation_is_bounded() -> None:
    whole = zlib.compress(b"x" * 1000)
    assert outside.inflated(whole, "it", 1000) == b"x" * 1000
    for data, message in (
        (zlib.compress(bytes(10**8)), "larger than"),
        (whole[:-3], "does not end"),
        (whole + b"y", "does not end"),
        (b"nothing", "cannot be decompressed"),
    ):
        with pytest.raises(outside.Refusal, match=message):
            outside.inflated(data, "it", 1000)


@dataclass(frozen=True)
class Form:
    name: outside.Word
    counts: tuple[int, ...]
    rate: float = 0.5
    extra: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ValueError(f"rate is {self.rate}; expected 1 or less")


def test_a_form_is_built_or_the_field_is_named() -> None:
    assert outside.build(Form, {"name": "a", "counts": [1, 2], "rate": 1}, "it") == Form("a", (1, 2), 1.0)
    assert outside.build(Form, {"name": "a", "counts": [], "new": 1}, "it", exact=False) == Form("a", ())
    for values, message in (
        ({"name": "a", "counts": [], "new": 1}, "unknown 'new'"),
        ({"name": "a"}, "counts"),
        ({"name": 1, "counts": []}, "name"),
        ({"name": "a" * 300, "counts": []}, "name"),
        ({"name": "a", "counts": [True]}, r"counts\[0\]"),
        ({"name": "a", "counts": [1.5]}, r"counts\[0\]"),
        ({"name": "a", "counts": [], "rate": "1"}, "rate"),
        ({"name": "a", "counts": [], "rate": 2}, "rate is 2.0"),
        ([1], "expected names and values"),
    ):
        with pytest.raises(outside.Refusal, match=message):
            outside.build(Form, values, "it")
