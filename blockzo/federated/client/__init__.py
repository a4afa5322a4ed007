"""The client of a run: a state machine that guards what leaves (`client`, `policy`), and the worker that holds model and data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.federated.client.client import Client
    from blockzo.federated.client.weights import Weights
    from blockzo.federated.client.worker import Worker

__all__ = ["Client", "Weights", "Worker"]

__getattr__ = names_of(
    __name__,
    {
        "Client": "blockzo.federated.client.client",
        "Weights": "blockzo.federated.client.weights",
        "Worker": "blockzo.federated.client.worker",
    },
)
