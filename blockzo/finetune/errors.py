"""Errors that are the user's to fix: the command line prints them without a traceback and exits with 2."""

from __future__ import annotations

import errno
from pathlib import Path

from blockzo.outside import Refusal


class UserError(Refusal):
    """Says what was found, what was expected and what to do."""


class Interrupted(Exception):
    """The run was asked to stop; everything up to the last step is on disk."""


def disk_error(error: OSError, path: Path | str) -> UserError:
    """The UserError for a failed write under `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left on the disk that holds {path}: free some space there, or continue elsewhere by copying the "
            "output folder; every step that was reported is in its journal, and --resume continues from it"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(
            f"cannot write to {path} ({error.strerror}): choose a folder that you may write to with --output"
        )
    return UserError(f"cannot write to {path}: {error.strerror or error}; look at the disk, or choose another --output")
