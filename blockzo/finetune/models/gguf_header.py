"""Whether a GGUF file is whole, before a library reads it: that one follows an array's length past the end of the file for ever.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_BITS = {0: 32, 1: 16, 28: 64, 30: 16}
"""Of an element of a plain format; a quantised one has more than one."""
_MOST_NESTED = 4
_SIZES = (
    "embedding_length,feed_forward_length,vocab_size,expert_count,attention.head_count,attention.head_count_kv,"
    "attention.key_length,attention.value_length,rope.dimension_count"
).split(",")
"""Settings that a model is made by, none of them larger than the largest size of a tensor."""


class _Reader:
    """Little-endian values of a file, one after the other; ValueError at its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def skip(self, count: int, what: str) -> int:
        start = self.at
        if count > len(self.data) - start:
            raise ValueError(f"{what} of {count} bytes at byte {start} goes beyond its end, {len(self.data)}")
        self.at += count
        return start

    def value(self, code: str) -> int | float:
        start = self.skip(struct.calcsize(code), "a value")
        found: int | float = struct.unpack_from("<" + code, self.data, start)[0]
        return found

    def number(self, code: str = "Q") -> int:
        return int(self.value(code))

    def text(self) -> str:
        size = self.number()
        start = self.skip(size, "a string")
        return self.data[start : start + size].decode("utf-8")

    def setting(self, kind: int, depth: int = 0) -> list[int | float | str]:
        """One value of metadata: its numbers, or its text; nothing of an array of others."""
        if kind in _SCALARS:
            return [self.value(_SCALARS[kind])]
        if kind == _STRING:
            return [self.text()]
        if kind != _ARRAY or depth == _MOST_NESTED:
            raise ValueError(f"a value of type {kind} before byte {self.at}; expected 0 to 12")
        inner, count = self.number("I"), self.number()
        if inner in _SCALARS:
            code = _SCALARS[inner]
            start = self.skip(count * struct.calcsize(code), "an array")
            return list(struct.unpack_from(f"<{count}{code}", self.data, start))
        for _ in range(count):
            self.setting(inner, depth + 1)
        return []


def check_gguf(path: Path) -> None:
    """Walks header and table of tensors.

    Raises:
        ValueError: what is wrong, without the file's name: it is cut, its lengths go beyond its end, or its settings ask for a
            model larger than its tensors.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin as a GGUF file does")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            reader.skip(4, "a value")
            _check(reader)


def _check(reader: _Reader) -> None:
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; expected 2 or 3, little-endian")
    tensors, settings = reader.number(), reader.number()
    found: dict[str, list[int | float | str]] = {}
    for _ in range(settings):
        name = reader.text()
        found[name] = reader.setting(reader.number("I"))
    for name in ("block_count", "embedding_length"):
        wanted = f"{(found.get('general.architecture') or [''])[0]}.{name}"
        if wanted not in found:
            # a library would take the default, of a model of billions of weights
            raise ValueError(f"it has no setting {wanted}")
    alignment = (found.get("general.alignment") or [32])[0]
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {alignment}; expected a power of two")
    sizes, last = [0], 0
    for _ in range(tensors):
        name = reader.text()
        rank = reader.number("I")
        if rank > 8:
            raise ValueError(f"the tensor {name!r} has {rank} dimensions")
        shape = [reader.number() for _ in range(rank)]
        bits = _BITS.get(reader.number("I"), 1)
        last = max(last, reader.number() + math.prod(shape) * bits // 8)
        sizes += shape
    start = -(-reader.at // alignment) * alignment
    if tensors and start + last > len(reader.data):
        raise ValueError(f"its tensors end at byte {start + last} or later, the file at {len(reader.data)}")
    for name, values in found.items():
        _, _, setting = name.partition(".")
        most = tensors if setting == "block_count" else max(sizes) if setting in _SIZES else None
        for value in values if most is not None else []:
            if isinstance(value, str) or not 0 <= value <= most:  # type: ignore[operator]
                raise ValueError(f"its setting {name} is {value}; its tensors allow 0 to {most}")
