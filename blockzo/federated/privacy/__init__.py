"""Clipping, noise and epsilon, and what has been released."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.federated.privacy.settings import PrivacySettings

__all__ = ["PrivacySettings"]

__getattr__ = names_of(
    __name__,
    {
        "PrivacySettings": "blockzo.federated.privacy.settings",
    },
)
