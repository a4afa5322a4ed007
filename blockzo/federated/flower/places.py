"""Where state and sockets lie, and who may enter: folders of the user alone."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import tempfile
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def checked_name(name: str) -> str:
    """`name`, where it can be the name of a folder.

    Raises:
        ValueError: it is empty, too long, or has characters other than letters, digits, point, dash and underscore.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the name is {name[:80]!r}; expected 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    return name


def state_root(given: str | None = None) -> Path:
    """Folder for what must outlive processes: `given`, else $BLOCKZO_STATE, else blockzo in the user's state folder."""
    if given or os.environ.get("BLOCKZO_STATE"):
        return Path(given or os.environ["BLOCKZO_STATE"]).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "blockzo"


def private_folder(path: Path) -> Path:
    """Makes `path`, for this user alone (mode 0700).

    Raises:
        PermissionError: it exists and belongs to someone else, is a link, or others may enter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{path} has mode {stat.filemode(found.st_mode)} and owner {found.st_uid}; expected a folder of user "
            f"{os.getuid()} alone (drwx------): remove it, or set BLOCKZO_RUNTIME to another place"
        )
    return path


MOST_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Of a socket's path, as the system's structure holds them."""


def socket_folder(state: Path) -> Path:
    """Folder of a worker's socket, token and locks, made where missing.

    Raises:
        ValueError: the path of a socket in it would be too long for the system.
    """
    base = os.environ.get("BLOCKZO_RUNTIME") or os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    name = hashlib.blake2s(os.fsencode(state), digest_size=8, person=b"bz-sock").hexdigest()
    root = Path(base) / f"blockzo-{os.getuid()}"
    length = len(os.fsencode(root / name / "socket"))
    if length > MOST_SOCKET_BYTES:
        raise ValueError(
            f"the worker's socket would lie in {root / name}, {length} bytes with its name; expected {MOST_SOCKET_BYTES} "
            "at most: set BLOCKZO_RUNTIME to a shorter folder"
        )
    return private_folder(private_folder(root) / name)
