"""Files that appear whole under their name, and have one writer: also where a file system lacks links or locks.

exFAT has no links, network drives may have neither: a lack is told apart from "the file exists" and "another process is writing".
"""

from __future__ import annotations

import errno
import json
import os
import platform
import secrets
import time
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]

_LACKING = {
    getattr(errno, name)
    for name in ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL", "ENOLCK", "EMLINK", "EXDEV", "ENOTTY", "EREMOTE")
    if hasattr(errno, name)
}
"""What systems answer where a call is not there; not that the answer is no."""
_RESERVED_FOR = 10.0
"""Seconds after which an empty file is taken for the rest of a creation that was killed."""
_LOCKED_BYTE = 1 << 40
_BINARY = getattr(os, "O_BINARY", 0)


class Busy(OSError):
    """Another process holds the file; the text says which where that is known."""


def open_for_writing(path: Path) -> int:
    return os.open(path, os.O_RDWR | _BINARY)


def write_at(file: int, data: bytes, at: int) -> None:
    """All of `data` at byte `at`; what was written of it before an error stays."""
    done = 0
    while done < len(data):
        if hasattr(os, "pwrite"):
            done += os.pwrite(file, data[done:], at + done)
        else:
            os.lseek(file, at + done, os.SEEK_SET)
            done += os.write(file, data[done:])


def create_whole(path: Path, data: bytes) -> None:
    """A new file with `data`, on disk, or none under this name; after a kill another try finds nothing in its way.

    Raises:
        FileExistsError: there is a file already.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open(temporary, "xb") as new:
            new.write(data)
            new.flush()
            os.fsync(new.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, refuses to replace a file
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            _reserve(path, temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _reserve(path: Path, temporary: Path) -> None:
    """Makes an empty file of the name, which one process alone can do; an old one is left from a creation that was killed."""
    for _ in range(2):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o666))
            return
        except FileExistsError:
            found = path.stat()
            # both times are of the file system's own clock
            if found.st_size or temporary.stat().st_mtime - found.st_mtime < _RESERVED_FOR:
                raise
            os.replace(path, temporary.with_suffix(".left"))
            temporary.with_suffix(".left").unlink()
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


class Lock:
    """One writer at a time, for as long as it lives; the end of a process ends it.

    The system's own lock of the open file, or, where the file system has none, a file beside it that names the process.

    Args:
        path, file: of the open file.

    Raises:
        Busy: another process has it.
        OSError: it cannot be locked.
    """

    def __init__(self, path: Path, file: int) -> None:
        self._beside: Path | None = None
        self._file = file
        try:
            _system_lock(file)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise Busy(error.errno, "another process holds it") from None
            if error.errno not in _LACKING:
                raise
            self._beside = _lock_file(path)

    def release(self) -> None:
        """The system's own lock goes with the open file."""
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)
            self._beside = None
        elif fcntl is None and msvcrt is not None:
            os.lseek(self._file, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(self._file, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]


def _system_lock(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        # far beyond the end: Windows keeps readers from bytes that are locked
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        raise OSError(errno.ENOSYS, "this Python has no file locks")


def _lock_file(path: Path) -> Path:
    beside, mine = path.with_name(f"{path.name}.lock"), _process(os.getpid())
    for _ in range(8):
        try:
            create_whole(beside, json.dumps(mine).encode())
            return beside
        except FileExistsError:
            pass
        try:
            held = json.loads(beside.read_bytes()[:4096])
        except FileNotFoundError:
            continue
        except ValueError:
            held = None
        if not isinstance(held, dict) or held.get("host") != mine["host"]:
            where = f"on {held.get('host')!r:.80}" if isinstance(held, dict) else "somewhere"
            raise Busy(
                errno.EAGAIN, f"{beside} says that a process {where} writes it; remove that file if none does any more"
            )
        if isinstance(held.get("process"), int) and _process(held["process"]) == held:
            raise Busy(errno.EAGAIN, f"process {held['process']} holds it")
        # its process is gone; two that see this at once rename one file, and only one of them succeeds
        aside = beside.with_name(f"{beside.name}.{secrets.token_hex(4)}.new")
        try:
            os.rename(beside, aside)
        except FileNotFoundError:
            continue
        try:
            if json.loads(aside.read_bytes()[:4096]) != held:
                os.rename(aside, beside)  # another one was faster, and holds it
        except ValueError:
            pass
        finally:
            aside.unlink(missing_ok=True)
        time.sleep(0.01)
    raise Busy(errno.EAGAIN, f"{beside} keeps changing; try again")


def _process(number: int) -> dict[str, Any]:
    """What tells a process from any other, of now and before; a number alone is given out again."""
    alive = 0 < number < 1 << 31
    if alive and os.name != "nt":  # there it would be a signal
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            alive = False
        except OSError:
            pass
    began = ""
    try:
        # the 22nd field, counted after the name, which may hold anything
        began = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, UnicodeDecodeError):
        pass
    return {"host": platform.node(), "process": number if alive else -1, "began": began}


def sync_directory(path: Path) -> None:
    """The names in a folder are on disk; where a system cannot say so of folders, nothing."""
    if os.name == "nt":
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
    finally:
        os.close(directory)
