"""Where a model is cut when nobody says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from blockzo.methods import Method
from blockzo.perturb.blocks import Blocks


def default_blocks(model: nn.Module, method: Method) -> Blocks:
    """One block, or the model cut in half where the method needs two."""
    try:
        method.tree(1)
    except ValueError:
        return Blocks(model, "auto")
    return Blocks(model, [])


def fine_blocks(model: nn.Module, example: Mapping[str, Any] | None = None) -> Blocks:
    """Embeddings with the first layer, quarters of the rest, the last two layers and what follows them, each a block."""
    try:
        count = len(Blocks(model).layers)
    except ValueError:
        return Blocks(model, [])
    cuts = {1, round(count / 4), round(count / 2), round(3 * count / 4), count - 2, count - 1, count}
    return Blocks(model, sorted(cut for cut in cuts if 1 <= cut <= count), example=example)
