"""`blockzo simulate`: federated rounds of many virtual clients in one process, on real data and models (docs/federated.md)."""

from blockzo.simulate.run import resume, simulate
from blockzo.simulate.settings import Federation

__all__ = ["Federation", "resume", "simulate"]
