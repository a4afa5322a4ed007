"""Journals on file systems that lack links or locks, and after a power failure."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import blockzo as bz
from blockzo.journal import files
from blockzo.journal.reader import PAGE
from tests.core import journals

LACKS = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK]


def lacking(number: int) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", LACKS)
def test_without_links_a_journal_is_made_and_none_is_replaced(number: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "link", lacking(number))
    path = tmp_path / "j"
    journals.write(path)
    journals.rebuild(path)
    data = path.read_bytes()
    with pytest.raises(bz.JournalError, match="exists; resume it"):
        bz.Journal.create(path)
    assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == ["j"]


def test_a_creation_that_was_killed_without_links_blocks_nobody_for_long(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "link", lacking(errno.EPERM))
    path = tmp_path / "j"
    path.touch()  # reserved, and killed before the header came
    with pytest.raises(bz.JournalError, match="exists"):
        bz.Journal.create(path)
    os.utime(path, (time.time() - 60, time.time() - 60))
    bz.Journal.create(path).close()
    assert [p.name for p in tmp_path.iterdir()] == ["j"] and len(bz.Journal.open(path)) == 0


def test_other_errors_are_told_as_they_are(tmp_path: Path, monkeypatch: Any) -> None:
    for number, text in ((errno.ENOSPC, "No space left"), (errno.EIO, "Input/output")):
        monkeypatch.setattr(os, "link", lacking(number))
        with pytest.raises(bz.JournalError, match=text):
            bz.Journal.create(tmp_path / "j")
        assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    journals.write(tmp_path / "j", finish=False)
    monkeypatch.setattr(files.fcntl, "flock", lacking(errno.EIO))
    with pytest.raises(bz.JournalError, match=r"cannot be locked against other writers \(Input/output"):
        bz.Journal.resume(tmp_path / "j")


@pytest.mark.parametrize("number", LACKS)
@pytest.mark.parametrize("links", [True, False])
def test_without_locks_there_is_one_writer_still(number: int, links: bool, tmp_path: Path, monkeypatch: Any) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lacking(number))
    monkeypatch.setattr(files.fcntl, "flock", lacking(number))
    path = tmp_path / "j"
    journals.write(path, finish=False)
    assert [p.name for p in tmp_path.iterdir()] == ["j"], "the lock goes with the writer"
    with bz.Journal.resume(path) as first:
        with pytest.raises(bz.JournalError, match=f"another process is writing .*process {os.getpid()} holds it"):
            bz.Journal.resume(path)
        first.append(journals.record(5))
    with bz.Journal.resume(path) as journal:
        assert len(journal) == 6


WRITER = """
import errno, os, sys
from pathlib import Path
from blockzo.journal import files
import blockzo as bz
def lacking(*a): raise OSError(errno.ENOLCK, "No locks available")
files.fcntl.flock = lacking
journal = bz.Journal.resume(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "j"
    journals.write(path, finish=False)
    other = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    monkeypatch.setattr(files.fcntl, "flock", lacking(errno.ENOLCK))
    with pytest.raises(bz.JournalError, match=f"process {other.pid} holds it"):
        bz.Journal.resume(path)
    other.kill()
    other.wait()
    assert (tmp_path / "j.lock").exists()
    with bz.Journal.resume(path) as journal:
        assert len(journal) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def test_a_lock_of_another_machine_is_left_to_a_person(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(files.fcntl, "flock", lacking(errno.ENOLCK))
    path = tmp_path / "j"
    journals.write(path, finish=False)
    for text in ('{"host": "elsewhere", "process": 1, "began": "5"}', "nonsense", "[]"):
        (tmp_path / "j.lock").write_text(text)
        with pytest.raises(bz.JournalError, match=r"j\.lock says that a process .* remove that file"):
            bz.Journal.resume(path)


def test_a_python_without_fcntl_imports_and_writes(tmp_path: Path) -> None:
    code = "import sys; sys.modules['fcntl'] = None; from tests.core import journals; from pathlib import Path; " + (
        f"journals.write(Path({str(tmp_path / 'j')!r})); journals.rebuild(Path({str(tmp_path / 'j')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def big(step: int) -> bz.Record:
    record = journals.record(step)
    late = bz.BlockUpdate(tuple(range(4000)), tuple(1.0 + k for k in range(4000)))
    return replace(record, blocks=(record.blocks[0], late))


def pages(data: bytes, begin: int, end: int) -> list[tuple[int, int]]:
    """The parts of [begin, end) that lie on one page each."""
    cuts = [begin, *range(-(-begin // PAGE) * PAGE, end, PAGE), end]
    return [(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if a < b]


@pytest.mark.parametrize("write", [big, journals.record])
def test_a_last_frame_that_lost_a_page_is_torn_and_one_before_it_is_damaged(
    write: Callable[[int], bz.Record], tmp_path: Path
) -> None:
    path = tmp_path / "j"
    ends = []
    with bz.Journal.create(path, layout=journals.LAYOUT, metadata={"pad": os.urandom(1500).hex()}) as journal:
        for step in range(3):
            ends.append(journal._end)
            journal.append(write(step))
        ends.append(journal._end)
    whole = path.read_bytes()
    for begin, end in pages(whole, ends[2], ends[3]):
        path.write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])
        if whole[begin:end] == bytes(end - begin):
            continue
        found = bz.Journal.open(path)
        assert len(found) == 2 and found.dropped == ends[3] - ends[2] and "not complete" in str(found.left_out)
        path.write_bytes(whole[:begin])
        os.truncate(path, ends[3] + 3 * PAGE)  # a file system that grew the file and wrote nothing
        with bz.Journal.resume(path) as journal:
            assert len(journal) == 2
            journal.append(write(2))
        assert path.read_bytes() == whole
    for number in range(2):
        for begin, end in pages(whole, ends[number], ends[number + 1]):
            path.write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])
            with pytest.raises(bz.JournalError, match="damaged"):
                bz.Journal.open(path)
    for place in range(ends[2], ends[3], 97):  # without a page of zeros it is damage, at the end too
        changed = bytearray(whole)
        changed[place] ^= 0x55
        if b"\0" * 8 not in whole[ends[3] // PAGE * PAGE :]:
            path.write_bytes(changed)
            with pytest.raises(bz.JournalError, match="damaged"):
                bz.Journal.open(path)
