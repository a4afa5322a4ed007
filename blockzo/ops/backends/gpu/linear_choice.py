"""Which path a GPU's perturbed layer takes: a table from measurements (linear_choice.json), which anyone can make anew.

Experimental: never run on a GPU.

BLOCKZO_LINEAR_CHOICE names another file of the same form. A GPU that is not in it has the row "any".
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("linear_choice.json")
# a path is made into text for each layer of each forward where the table is asked by one
_FILE = str(FILE)
ANY = "any"
KEYS = tuple(f"{dtype} {kind}" for dtype in ("bfloat16", "float16") for kind in ("rademacher", "gaussian"))
"""Most tokens a group for which two products apart are faster than moved panels."""


def choose(gpu: str, dtype: str, distribution: str, tokens: int) -> str:
    """The way of a layer with so many tokens a group: "products" or "panels". Not by the number of groups, or a group's values
    would depend on the others.

    Args:
        gpu: as `torch.cuda.get_device_name` gives it.
        dtype: "bfloat16" or "float16"; others go by panels.

    Raises:
        ValueError: the table is not one; it is named.
    """
    # beyond, each tile of tokens would make the weight's noise again
    most = _most(os.environ.get("BLOCKZO_LINEAR_CHOICE") or _FILE, gpu, dtype, distribution)
    return "products" if tokens <= most else "panels"


@lru_cache(maxsize=64)
def _most(path: str, gpu: str, dtype: str, distribution: str) -> int:
    rows = read(path)
    return int(rows.get(gpu, rows[ANY]).get(f"{dtype} {distribution}", 0))


@lru_cache(maxsize=8)
def read(path: str) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); unset BLOCKZO_LINEAR_CHOICE, or measure it again") from None
    rows = {name: row for name, row in table.items() if isinstance(row, dict)} if isinstance(table, dict) else {}
    counts = [row.get(key) for row in rows.values() for key in KEYS]
    if ANY not in rows or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(f"{path}: expected a row {ANY!r}, and in every row numbers of tokens for {', '.join(KEYS)}")
    return rows


def write(path: Path, gpu: str, row: dict[str, Any]) -> None:
    """Adds or replaces the row of one GPU."""
    table = json.loads(path.read_text(encoding="utf-8"))
    table[gpu] = row
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    read.cache_clear()
    _most.cache_clear()
    read(str(path))
