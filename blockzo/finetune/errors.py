"""Errors that are the user's to fix: the command line prints them without a traceback and exits with 2."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockzo.journal.outside import Refusal


class UserError(Refusal):
    """Says what was found, what was expected and what to do."""


class Interrupted(Exception):
    """The run was asked to stop; everything up to the last step is on disk."""


@contextmanager
def about(*options: str) -> Iterator[None]:
    """An error of the library about what these options said names one of them."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if any(option in text for option in options):
            raise
        raise UserError(f"{text}. Look at {' and '.join(options)}") from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def os_error_in(error: BaseException) -> OSError | None:
    """The error of the operating system that `error` is, or that a library written in Rust tells in its text."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def disk_error(error: OSError, path: Path | str) -> UserError:
    """The UserError for a failed write under `path`."""
    if error.errno == errno.EFBIG:
        return UserError(
            f"a file under {path} would be larger than this process may write (ulimit -f), or than the file system takes: "
            "raise the limit, or choose another --output; every step that was reported is in its journal, and --resume "
            "continues from it"
        )
    if error.errno in FULL:
        return UserError(
            f"no space left on the disk that holds {path}: free some space there, or continue elsewhere by copying the "
            "output folder; every step that was reported is in its journal, and --resume continues from it"
        )
    if error.errno in FORBIDDEN:
        return UserError(
            f"cannot write to {path} ({error.strerror}): choose a folder that you may write to with --output"
        )
    return UserError(f"cannot write to {path}: {error.strerror or error}; look at the disk, or choose another --output")


def sentence(error: OSError) -> str:
    """An error of the operating system that nobody caught before, for a person."""
    if error.filename is None:
        return f"{error.strerror or error}; look at the disk, or at where the output goes"
    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else error.filename
    if error.errno in FULL:
        return f"no space left for {path} ({error.strerror}); free some space there, or choose another place"
    if error.errno in FORBIDDEN:
        return f"{path} may not be read or written ({error.strerror}); change its permissions, or choose another place"
    return f"{path}: {error.strerror or error}; look at this path"
