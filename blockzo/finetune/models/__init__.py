"""Models: where they come from, whether their weights are whole, and what makes one the same as another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.finetune.models.loading import Loaded, load, resolve, save

__all__ = ["Loaded", "load", "resolve", "save"]

__getattr__ = names_of(
    __name__,
    {
        "Loaded": "blockzo.finetune.models.loading",
        "load": "blockzo.finetune.models.loading",
        "resolve": "blockzo.finetune.models.loading",
        "save": "blockzo.finetune.models.loading",
    },
)
