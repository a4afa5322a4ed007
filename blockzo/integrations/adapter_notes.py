"""How a journal says how an adapter was made; read where PEFT need not be installed."""

from __future__ import annotations

from typing import Any

from torch import nn

NOTE = "blockzo_adapter"
"""Attribute of a model that `peft.adapter` made."""
METADATA = "adapter"
"""Its place in a journal's metadata."""


def note_of(model: nn.Module) -> dict[str, Any]:
    """What a journal's metadata should hold of a model: how to make its adapter again; empty where `adapter` did not make it."""
    note = getattr(model, NOTE, None)
    return {} if note is None else {METADATA: note}
