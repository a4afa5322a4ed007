"""The CUDA library of blockzo: loaded at first use; where it or a driver is missing, Triton serves instead.

Experimental: never run on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

VERSION = 2
PATH = Path(__file__).resolve().parents[3] / "_cuda.so"


class CudaError(RuntimeError):
    """A launch that the library refused, with the driver's words."""


@cache
def library() -> ctypes.CDLL | None:
    """The library where it is there, fits this package and finds a device; BLOCKZO_CUDA=0 leaves it aside."""
    if os.environ.get("BLOCKZO_CUDA", "auto") == "0":
        return None
    found = load(PATH)
    return found if found is not None and found.blockzo_cuda_devices() > 0 else None


def load(path: Path) -> ctypes.CDLL | None:
    """The library with its interface declared, without asking for a device; None where there is none.

    Raises:
        CudaError: the library is of another version than this package.
    """
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    version = found.blockzo_cuda_version()
    if version != VERSION:
        raise CudaError(f"{path.name} has interface {version}; expected {VERSION}: install blockzo again")
    found.blockzo_cuda_error.restype = ctypes.c_char_p
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    found.blockzo_cuda_move.argtypes = [
        pointer, pointer, ctypes.c_int64, pointer, integer, pointer, integer, integer, integer, pointer
    ]  # fmt: skip
    return found


def state() -> str:
    """For `blockzo env`: "loads", or what serves in its place."""
    return "not built: Triton serves alone" if load(PATH) is None else "loads"


def check(found: ctypes.CDLL, code: int) -> None:
    if code:
        text = found.blockzo_cuda_error(code).decode(errors="replace")
        raise CudaError(f"the CUDA kernels of blockzo report error {code}: {text}")
