"""Several blockzo messages in one Flower message: each as u32 length and its bytes, little-endian."""

from __future__ import annotations

import struct
from collections.abc import Iterable

KEY = "m"
"""Name of the record, and of the one value in it, in a Flower message."""
ABOUT = "about"
"""Name of the value with which a node introduces itself: JSON."""
INTRODUCE = b""
"""An empty message from the server: say hello, and who you are."""
MOST_BYTES = 1 << 26

_LENGTH = struct.Struct("<I")


def pack(messages: Iterable[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(message)) + message for message in messages)


def unpack(data: bytes) -> list[bytes]:
    """The messages in `data`.

    Raises:
        ValueError: the lengths do not fit the bytes.
    """
    messages, at = [], 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise ValueError(f"{len(data) - at} bytes follow the last message; expected a length and its bytes")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            raise ValueError(f"a message of {size} bytes was promised, {len(data) - at} are there")
        messages.append(data[at : at + size])
        at += size
    return messages
