"""What a client finds on its data, and what does the finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.record import Record


@dataclass(frozen=True)
class Estimate:
    """What a client found on its data: scalars (steps, then blocks, then directions), mean loss, rows.

    `counts`: where a reply says it (`RunSettings.counted`), how many examples of every local step have directions of their own.
    `plan`: of a planned round (`protocol.planned`), its mark; `scalars` are the losses then.
    """

    scalars: tuple[float, ...]
    loss: float
    examples: int
    counts: tuple[int, ...] = ()
    plan: int = 0


class ClientWorker(Protocol):
    """Model and data of a client (`blockzo.federated.client.worker.Worker`)."""

    base_digest: str
    layout: dict[str, int]
    blocks: int

    def begin(self, settings: RunSettings) -> None:
        """Checks that the settings fit model and data; ValueError where not."""

    def reset(self, snapshot: dict[str, Any] | None) -> None:
        """Base weights again, or those of a snapshot."""

    def replay(self, records: Sequence[Record]) -> None: ...

    def digest(self) -> str: ...

    def save(self, path: Path) -> None:
        """Writes the trainable weights as safetensors."""

    def estimate(self, number: int, slot: int) -> Estimate: ...

    def scores(self) -> tuple[int, float, float]:
        """Rows, loss, accuracy on held-out data."""
