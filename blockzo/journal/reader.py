"""A journal's frames as they lie in a file, checked one after the other; and whether its end is torn or damaged."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from blockzo.journal.format import HEAD, MAX_BODY, START, Header, JournalError, check_start, decode_header

PAGE = 4096
MOST_TORN = 1 << 20
"""Bytes after the last whole frame in which, where its length was lost, another one is looked for."""
_CHUNK = 1 << 20
# where a length of at most MAX_BODY, and not 0, may stand
_LENGTHS = re.compile(rb"(?=(?!\0\0\0\0)...[\0-\4])", re.DOTALL)


class Reader:
    """Attributes: `header`; `end` and `chain`, where the next frame goes on after those that were read so far.

    Args:
        file: seekable; read in order, so that memory is that of one frame.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        self.chain = check_start(file.read(START))
        self.end = START
        body = self._frame()
        if body is None:
            raise JournalError("the file ends inside its header; there is nothing to resume: delete it and start again")
        self.header: Header = decode_header(body[0], body[1:])

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(kind, payload) of every whole frame after the header.

        Raises:
            JournalError: something before the last frame is wrong, or the last one in a way that no cut makes.
        """
        while self.end < self.size:
            body = self._frame()
            if body is None:
                return
            yield body[0], body[1:]

    def _frame(self) -> bytes | None:
        """The body of the next frame; None where the file ends inside it."""
        at, left = self.end, self.size - self.end
        head = self._file.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        length, check = HEAD.unpack(head)
        chain = zlib.crc32(head[:4], self.chain)
        if chain != check or not 1 <= length <= MAX_BODY:
            self._lost(at, None, "the length of a record fails its check")
            return None
        stop = HEAD.size + length + 4
        if left < stop:
            return None
        body = self._file.read(length)
        chain = zlib.crc32(body, chain)
        if self._file.read(4) != struct.pack("<I", chain):
            self._lost(at, at + stop, "a record fails its check")
            return None
        self.end, self.chain = at + stop, chain
        return body

    def _lost(self, at: int, stop: int | None, problem: str) -> None:
        """Returns where the file is a last write of which pages never reached the disk (they read as zeros).

        Args:
            stop: where the frame ends; None where its length is lost too.
        """
        if self._zeros_from(at):
            return
        last = stop is None and self.size - at <= MOST_TORN or stop is not None and self._zeros_from(stop)
        if last:
            rest = self._read(at, (stop or self.size) - at)
            if _has_lost_page(rest, at) and (stop is not None or not _frame_in(rest)):
                return
        raise JournalError(f"damaged at byte {at}: {problem}; restore the file from a copy")

    def _read(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        return self._file.read(count)

    def _zeros_from(self, at: int) -> bool:
        self._file.seek(at)
        while part := self._file.read(_CHUNK):
            if part.count(0) != len(part):
                return False
        return True


def _has_lost_page(data: bytes, at: int) -> bool:
    """Is `data`, which lies at byte `at`, zero from one page boundary (or its beginning) to the next (or its end)?"""
    begin = 0
    while begin < len(data):
        end = min(len(data), begin + PAGE - (at + begin) % PAGE)
        if data.count(0, begin, end) == end - begin:
            return True
        begin = end
    return False


def _frame_in(data: bytes) -> bool:
    """Does a frame begin anywhere in `data`? Its length is checked by the CRC before it, in the four bytes before it."""
    for found in _LENGTHS.finditer(data, 4):
        at = found.start()
        if at + HEAD.size > len(data):
            return False
        (before,) = struct.unpack_from("<I", data, at - 4)
        (check,) = struct.unpack_from("<I", data, at + 4)
        if zlib.crc32(data[at : at + 4], before) == check:
            return True
    return False
