"""A finite pool of directions: the whole run as one number for each direction (FedKSeed, arXiv 2312.06353).

The weights after every `rebase` rounds are the base less the sum of all coefficients so far, rounded once; between, records are
applied one by one. Everyone makes these steps at the same rounds, so all hold the same bits, and the sums are all that a newcomer
needs.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

from blockzo.federated.protocol.records import make_record
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.outside import shown
from blockzo.journal.record import Record, float32


class DirectionPool:
    """Sums of the coefficients of every direction, in float64 in the order of the rounds."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.position = 0
        self._sums: list[dict[int, float]] = [{} for _ in settings.directions]
        self._at_rebase: tuple[int, list[dict[int, float]]] = (0, [{} for _ in settings.directions])

    def add(self, records: Sequence[Record]) -> None:
        """The records from `position` on."""
        for record in records:
            for sums, block in zip(self._sums, record.blocks, strict=True):
                for direction, coefficient in zip(block.directions, block.coefficients, strict=True):
                    sums[direction] = sums.get(direction, 0.0) + coefficient
            self.position = record.step + 1
            if self.position % self.settings.rebase == 0:
                self._at_rebase = (self.position, [dict(sums) for sums in self._sums])

    def whole(self) -> Record:
        """All rounds so far as one update of the base."""
        directions = [tuple(sorted(sums)) for sums in self._sums]
        values = [tuple(float32(sums[k]) for k in block) for sums, block in zip(self._sums, directions, strict=True)]
        return make_record(self.settings, max(0, self.position - 1), 0.0, directions, values, self.settings.rates(0))

    def shorter(self, position: int) -> bool:
        """Are the sums of the last rebase fewer bytes than the records from `position` to it?"""
        number, sums = self._at_rebase
        return position < number and 16 * sum(map(len, sums)) < 4 * self.settings.scalars * (number - position)

    def snapshot(self) -> dict[str, Any]:
        """The sums of the last rebase, for a message: {"round", "pool": base64 of (u32, f64) pairs for each block}."""
        number, every = self._at_rebase
        packed = [b"".join(struct.pack("<Id", k, sums[k]) for k in sorted(sums)) for sums in every]
        return {"round": number, "pool": [base64.b64encode(data).decode("ascii") for data in packed]}

    @classmethod
    def restored(cls, settings: RunSettings, snapshot: dict[str, Any]) -> DirectionPool:
        """From what `snapshot` gave.

        Raises:
            ValueError: it is not one of this run.
        """
        found = cls(settings)
        blocks, number = snapshot.get("pool"), snapshot.get("round")
        if not isinstance(blocks, list) or len(blocks) != settings.blocks or not isinstance(number, int):
            raise ValueError(f"a pool of {settings.blocks} blocks was expected; found {shown(list(snapshot))}")
        if not settings.pool or not 0 <= number < 1 << 32 or number % settings.rebase:
            raise ValueError(f"the pool of round {number} does not belong to this run")
        for sums, text in zip(found._sums, blocks, strict=True):
            if not isinstance(text, str) or len(text) > 16 * settings.pool + 4:
                raise ValueError(
                    f"a pool of {settings.pool} directions is {shown(text)}; expected as many pairs at most"
                )
            data = base64.b64decode(text, validate=True)
            if len(data) % 12:
                raise ValueError("a pool is not made of pairs")
            for direction, value in struct.iter_unpack("<Id", data):
                if direction >= settings.pool or not abs(value) <= 3e38:
                    raise ValueError(f"a pool of {settings.pool} holds direction {direction} with {value}")
                sums[direction] = value
        found.position = number
        found._at_rebase = (number, [dict(sums) for sums in found._sums])
        return found
