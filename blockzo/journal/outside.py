"""The one place that believes nothing: text, JSON and compressed bytes that come from outside, bounded before they are used.

Journals and messages may come from anyone, under right checksums. What is parsed here costs memory and time in proportion to its
bytes, has the types that it must have, and is quoted without control characters. Nothing here needs torch.
"""

from __future__ import annotations

import json
import re
import reprlib
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

MOST_JSON = 1 << 23
"""Bytes of one JSON text."""
MOST_NODES = 1 << 19
"""Values, keys and brackets of one JSON text: each becomes an object of about a hundred bytes."""
MOST_DEPTH = 64
MOST_TEXT = 2000
"""Characters of an error; what is longer is cut."""
MOST_SCALARS = 1 << 21
"""Directions, or losses, of one record; scalars of one reply."""
MOST_BLOCKS = 256
MOST_EVALUATIONS = 1 << 15
"""Losses of one step: hours, at any size of model."""
MOST_MESSAGE = 1 << 26
"""Bytes of one message."""

Position = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Word = Annotated[str, Meta(max_length=256)]
"""A name, a digest, a code."""
Sentence = Annotated[str, Meta(max_length=1 << 16)]

T = TypeVar("T")


class Refusal(ValueError):
    """What was given cannot be used; the text says what was found and what to do, in characters that a terminal only prints."""

    def __init__(self, text: object = "") -> None:
        super().__init__(printable(str(text)))


def printable(text: str, most: int = MOST_TEXT) -> str:
    """`text` with control and invisible characters escaped (line feeds stay), cut to about `most` characters."""
    whole = len(text)
    if whole > most:
        text = text[:most]
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
        )
        if len(text) > 2 * most:
            text, whole = text[: 2 * most], max(whole, most + 1)
    return text if whole <= most else f"{text} ... ({whole} characters)"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100
_short.maxlevel = 3


def shown(value: object) -> str:
    """A short repr of anything, for an error."""
    try:
        return printable(_short.repr(value), 300)
    except Exception:  # an int with too many digits for a repr
        return f"a {type(value).__name__}"


def inflated(data: bytes, what: str, most: int = MOST_JSON) -> bytes:
    """Decompresses zlib data to `most` bytes at most.

    Raises:
        Refusal: it is no zlib data, is cut, has bytes after its end, or holds more.
    """
    machine = zlib.decompressobj()
    try:
        result = machine.decompress(data, most + 1)
    except zlib.error as error:
        raise Refusal(f"{what} cannot be decompressed ({error})") from None
    if len(result) > most:
        raise Refusal(f"{what} is larger than {most} bytes; nothing of blockzo writes that")
    if not machine.eof or machine.unused_data:
        raise Refusal(f"{what} does not end where its bytes end")
    return result


_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def read_json(data: bytes, what: str, most: int = MOST_JSON) -> Any:
    """A JSON value.

    Raises:
        Refusal: it is no JSON, or larger, deeper or made of more parts than anything that blockzo writes.
    """
    if len(data) > most:
        raise Refusal(f"{what} has {len(data)} bytes of JSON; expected at most {most}")
    if sum(map(data.count, (b",", b":", b"[", b"{"))) > MOST_NODES:
        raise Refusal(f"{what} has more than {MOST_NODES} parts; nothing of blockzo writes that")
    depth = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise Refusal(f"{what} is nested deeper than {MOST_DEPTH} levels")
        elif first in b"]}":
            depth -= 1
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except ValueError as error:
        raise Refusal(f"{what} cannot be read as JSON ({error})") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def write_json(value: Any, what: str, most: int = MOST_JSON) -> bytes:
    """`value` as JSON that `read_json` reads.

    Raises:
        Refusal: it has no JSON form, or one beyond the bounds.
    """
    try:
        data = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise Refusal(f"{what} cannot be written as JSON: {error}") from error
    read_json(data, what, most)
    return data


def build(form: type[T], values: Any, what: str, exact: bool = True) -> T:
    """The dataclass `form` from what `read_json` gave: every field has its type, and the form's own checks have passed.

    Args:
        exact: refuse names that the form does not have; else they are left out.

    Raises:
        Refusal: names the field that is missing, unknown or of another type.
    """
    if not isinstance(values, Mapping):
        raise Refusal(f"{what} is {shown(values)}; expected names and values")
    known = {field.name for field in fields(form)}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in set(values) - known)
    if unknown and exact:
        told = ", ".join(shown(name) for name in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise Refusal(f"{what} has the unknown {told} (another version of blockzo?)")
    try:
        return msgspec.convert({name: values[name] for name in known & set(values)}, form)
    except msgspec.ValidationError as error:
        # `$.a[0]` is a[0]
        raise Refusal(f"{what}: {str(error).replace('`$.', '`')}") from None
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise Refusal(f"{what}: {error}") from None
