"""Weight decay that spares some weights, norms and biases mostly.

A record has one decay a block. So the spared weights of block b are block B + b of the records, with the same directions and
coefficients and without decay: the noise of a weight depends on its name, not on its block, and the journal's format stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from blockzo.journal.record import BlockUpdate, Record
from blockzo.perturb.blocks import Blocks

Spared = Collection[str] | Callable[[str], bool]
"""Canonical names of the parameters that do not decay, or a function of a name."""


class Decay:
    """Decoupled weight decay at `rate` of all trainable weights but the spared ones.

    Attributes:
        layout: canonical name of every trainable parameter -> its block in records.
        blocks: number of blocks in a record: twice that of the model where weights are spared, else that of the model.

    Raises:
        ValueError: a name is not that of a trainable parameter.
    """

    def __init__(self, blocks: Blocks, rate: float, spared: Spared | None = None) -> None:
        self.rate = float(rate)
        found: set[str] = set()
        if spared is not None and callable(spared):
            found = {name for name in blocks.layout if spared(name)}
        elif spared is not None:
            if isinstance(spared, str) or not set(spared) <= set(blocks.layout):
                unknown = [spared] if isinstance(spared, str) else sorted(set(spared) - set(blocks.layout))
                raise ValueError(
                    f"no_decay holds {', '.join(map(repr, unknown[:3]))}; expected a collection of names of trainable "
                    f"parameters, such as {next(iter(blocks.layout), None)!r}, or a function of a name"
                )
            found = set(spared)
        self.of_model = len(blocks)
        self.spares = bool(found and self.rate)
        self.blocks = self.of_model * (2 if self.spares else 1)
        self.layout = {
            name: block + (self.of_model if self.spares and name in found else 0)
            for name, block in blocks.layout.items()
        }

    def of_record(self, updates: Sequence[BlockUpdate]) -> tuple[BlockUpdate, ...]:
        """Updates of the record's blocks, from those of the model's."""
        return (*updates, *(replace(update, decay=0.0) for update in updates)) if self.spares else tuple(updates)

    def of_blocks(self, record: Record) -> Record:
        """The record with the blocks of the model alone, as planners read it."""
        return replace(record, blocks=record.blocks[: self.of_model]) if self.spares else record
