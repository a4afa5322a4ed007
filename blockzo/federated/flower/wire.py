"""Request and answer on a worker's socket; both sides belong to one user on one machine.

request = 32 bytes token, 16 bytes configuration digest, u32 length, messages        answer = u8 status, u32 length, messages
"""

from __future__ import annotations

import socket
import struct

from blockzo.federated.flower.envelope import MOST_BYTES

TOKEN_BYTES, DIGEST_BYTES = 32, 16
DONE, FAILED, REFUSED, RETIRED = range(4)
"""Answered; an exception, its text follows; the caller is not who it must be; the worker had another configuration and ends."""

_HEAD = struct.Struct("<BI")
_LENGTH = struct.Struct("<I")


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Raises ConnectionError where the other side ends before `size` bytes came."""
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise ConnectionError(f"the connection ended after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


def _read_sized(connection: socket.socket, size: int) -> bytes:
    if size > MOST_BYTES:
        raise ConnectionError(f"{size} bytes were announced; expected at most {MOST_BYTES}")
    return read_exactly(connection, size)


def send_request(connection: socket.socket, token: bytes, digest: bytes, data: bytes) -> None:
    connection.sendall(token + digest + _LENGTH.pack(len(data)) + data)


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Configuration digest and messages, after the token was read and found right."""
    digest = read_exactly(connection, DIGEST_BYTES)
    (size,) = _LENGTH.unpack(read_exactly(connection, _LENGTH.size))
    return digest, _read_sized(connection, size)


def send_answer(connection: socket.socket, status: int, data: bytes = b"") -> None:
    connection.sendall(_HEAD.pack(status, len(data)) + data)


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    status, size = _HEAD.unpack(read_exactly(connection, _HEAD.size))
    return status, _read_sized(connection, size)
