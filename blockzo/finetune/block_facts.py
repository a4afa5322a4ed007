"""Blocks as facts for people and JSON."""

from __future__ import annotations

from typing import Any

from blockzo import Blocks


def block_facts(blocks: Blocks) -> list[dict[str, Any]]:
    """First layer, number of layers and weights of every block."""
    ends = [*blocks.starts[1:], len(blocks.layers)]
    return [
        {
            "first_layer": start,
            "layers": end - start,
            "parameters": sum(tensor.numel() for tensor in blocks.parameters(number).values()),
        }
        for number, (start, end) in enumerate(zip(blocks.starts, ends, strict=True))
    ]
