"""The server of a run: a state machine without transport and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.federated.server.server import Server

__all__ = ["Server"]

__getattr__ = names_of(
    __name__,
    {
        "Server": "blockzo.federated.server.server",
    },
)
