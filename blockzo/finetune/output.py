"""The output folder: what may be written there, the metrics file that survives a kill, folders that appear whole."""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError, disk_error, os_error_in

JOURNAL = "journal.bz"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CURVE = "curve.png"
MODEL = "model"


def check_folder(path: Path) -> None:
    """Raises UserError unless a run can begin in `path`: it is empty or not there, and can be written. Leaves nothing behind."""
    try:
        if path.exists():
            # a kill while the journal was made leaves its unfinished file; there was no step yet
            # (an empty journal, where the file system has no links)
            found = sorted(e.name for e in path.iterdir() if not e.match(f"{JOURNAL}.*.new") and not _reserved(e))
            if JOURNAL in found:
                raise UserError(
                    f"{path} holds a run already: continue it with --resume --output {path}, or choose another --output"
                )
            if found:
                raise UserError(
                    f"{path} is not empty (it holds {', '.join(found[:3])}): choose another --output, or empty it"
                )
        above = path
        while not above.exists():
            above = above.parent
        os.rmdir(tempfile.mkdtemp(prefix=".blockzo-", dir=above))
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path} (or a folder above it) is a file: choose another --output") from None
    except OSError as error:
        raise disk_error(error, path) from None


def make_folder(path: Path) -> None:
    """Makes the folder of a run that was accepted (`check_folder`)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path} (or a folder above it) is a file: choose another --output") from None
    except OSError as error:
        raise disk_error(error, path) from None


def _reserved(path: Path) -> bool:
    return path.name == JOURNAL and path.is_file() and not path.stat().st_size


def check_space(path: Path, needed: int) -> None:
    """Raises UserError unless `needed` bytes are free where `path` is, or will be."""
    above = path
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            f"the disk that holds {path} has {free / 1e6:.0f} MB free, the run writes about {needed / 1e6:.0f} MB there: "
            "no space left for the model; free some space, or choose another --output"
        )


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """`write(temporary)` makes a file or folder, which then appears under `path` at once, in place of what was there. What a
    process that was killed left of the same work is removed.

    Raises:
        UserError: it cannot be written; what was at `path` is as before.
    """
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}")
    try:
        for left in _abandoned(path):
            _remove(left)
        try:
            write(temporary)
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
    except Exception as error:
        failed = os_error_in(error)
        if failed is None:
            raise
        raise disk_error(failed, path) from error


def _host() -> str:
    """This host's name, as part of a file's."""
    return "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())[:40]


def _abandoned(path: Path) -> list[Path]:
    """Temporary files and folders of `path` whose process is gone. Those of other hosts stay: what runs there cannot be seen."""
    found = []
    for place in path.parent.glob(f".{glob.escape(path.name)}.*"):
        host, _, process = place.name[len(path.name) + 2 :].rpartition(".")
        # versions before 0.2 named no host
        if host in (_host(), "") and process.isdecimal() and (int(process) == os.getpid() or not _lives(int(process))):
            found.append(place)
    return found


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    return True


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, lambda place: _write_text(place, json.dumps(value, indent=2) + "\n"))


def _write_text(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")


class Metrics:
    """`metrics.jsonl`: one line a step, from 0 (before training).

    Args:
        last: the last step that may be there (the journal's); later or torn lines are cut off when a run continues.
    """

    def __init__(self, path: Path, last: int) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        try:
            data = path.read_bytes() if path.exists() else b""
            end = 0
            for raw in data.splitlines(keepends=True):
                line = _line(raw)
                if line is None or line.get("step") != len(self.lines) or len(self.lines) > last:
                    break
                self.lines.append(line)
                end += len(raw)
            # r+ keeps what is there: a kill between here and the next line loses nothing
            self._file = open(path, "r+b" if path.exists() else "w+b")
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise disk_error(error, path) from None

    @property
    def steps(self) -> int:
        """Steps that have a line; -1 where not even step 0 has one."""
        return len(self.lines) - 1

    def append(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from None
        self.lines.append(line)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(error, self.path) from None


def _line(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
