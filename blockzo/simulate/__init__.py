"""`blockzo simulate`: federated rounds of many virtual clients in one process, on real data and models (docs/federated.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.simulate.run import resume, simulate
    from blockzo.simulate.settings import Federation

__all__ = ["Federation", "resume", "simulate"]

__getattr__ = names_of(
    __name__,
    {
        "Federation": "blockzo.simulate.settings",
        "resume": "blockzo.simulate.run",
        "simulate": "blockzo.simulate.run",
    },
)
