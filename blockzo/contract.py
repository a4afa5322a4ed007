"""The names and ranges of noise contract v1 (docs/noise.md), without torch: what a server or a reader of journals needs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

CONTRACT = "blockzo noise v1"
DISTRIBUTIONS = ("rademacher", "gaussian")
ROUNDING_DIRECTION = 0xFFFFFFFF
"""The direction whose words drive stochastic rounding; no perturbation may use it."""
MAX_RANK = 64
ROW_FACTORS, COLUMN_FACTORS = 1 << 63, 3 << 62
"""Index of the first factor of low-rank noise: of the rows (A) and of the columns (B). No element of a tensor has such."""


def canonical_name(name: str) -> str:
    """The name a parameter has without wrappers: leading `module.` and any `_orig_mod.` are removed."""
    while name.startswith("module."):
        name = name[len("module.") :]
    kept = [part for part in name.split(".") if part != "_orig_mod"]
    name = ".".join(kept)
    return canonical_name(name) if name.startswith("module.") else name


def stream_id(name: str) -> int:
    """The uint32 stream of a tensor: `zlib.crc32` of its canonical name in UTF-8."""
    return zlib.crc32(canonical_name(name).encode("utf-8"))


def check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed!r}; expected an integer in [0, 2**64)")
    return seed


def check_direction(direction: int) -> int:
    if isinstance(direction, bool) or not isinstance(direction, int) or not 0 <= direction < ROUNDING_DIRECTION:
        raise ValueError(
            f"direction is {direction!r}; expected an integer in [0, 2**32 - 1) (the last is kept for stochastic rounding)"
        )
    return direction


def check_rank(rank: int | None) -> int | None:
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK):
        raise ValueError(f"rank is {rank!r}; expected an integer from 1 to {MAX_RANK}, or None for noise of full rank")
    return rank


def is_low_rank(shape: Sequence[int], rank: int | None) -> bool:
    """Whether a whole tensor of `shape` has noise of that rank: a matrix with both sides larger. Others have full rank."""
    return rank is not None and len(shape) == 2 and min(shape) > rank


MOVED = ("auto", "float32", "rounded")
"""How moved 16-bit weights are multiplied: as is fastest here; with the move as it is; rounded to their dtype once, as moves in
place leave them."""


def check_moved(moved: str) -> str:
    if moved not in MOVED:
        raise ValueError(f"moved is {moved!r}; expected one of {', '.join(MOVED)}")
    return moved


def check_stream(stream: str | int) -> int:
    if isinstance(stream, str):
        return stream_id(stream)
    if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream <= 0xFFFFFFFF:
        raise ValueError(f"stream is {stream!r}; expected a parameter name or an integer in [0, 2**32)")
    return stream
