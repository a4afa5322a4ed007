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
MOST_MESSAGES = 64
"""Of one envelope; a round needs two or three."""

_LENGTH = struct.Struct("<I")


def pack(messages: Iterable[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(message)) + message for message in messages)


def unpack(data: bytes) -> list[bytes]:
    """The messages in `data`.

    Raises:
        ValueError: the lengths do not fit the bytes, or there are too many.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"an envelope of {len(data)} bytes; expected at most {MOST_BYTES}")
    messages: list[bytes] = []
    at = 0
    while at < len(data):
        if len(messages) == MOST_MESSAGES:
            raise ValueError(f"more than {MOST_MESSAGES} messages in an envelope; expected two or three")
        if at + _LENGTH.size > len(data):
            raise ValueError(f"{len(data) - at} bytes follow the last message; expected a length and its bytes")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            raise ValueError(f"a message of {size} bytes was promised, {len(data) - at} are there")
        messages.append(data[at : at + size])
        at += size
    return messages
