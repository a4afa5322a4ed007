"""A short name for a block layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def layout_digest(layout: Mapping[str, int]) -> str:
    """BLAKE2s of the sorted (parameter, block) pairs, 32 hexadecimal digits."""
    text = json.dumps(sorted(layout.items()), separators=(",", ":"))
    return hashlib.blake2s(text.encode("utf-8"), digest_size=16).hexdigest()
