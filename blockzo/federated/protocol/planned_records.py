"""Records of planned rounds as they travel (docs/federated.md, "Record")."""

from __future__ import annotations

import math
import struct

from blockzo.federated.protocol.addresses import noise_seed
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.record import BlockUpdate, Record, check_record

_PLANNED = 8
_HEAD = struct.Struct("<BHHHId")


def encode_planned(record: Record, settings: RunSettings) -> bytes:
    """u8 8, u16 block, u16 directions, u16 losses, u32 round of the seed, f64 rate, B f64 eps, losses and coefficients (f32)."""
    block = next(b for b, update in enumerate(record.blocks) if update.directions)
    update = record.blocks[block]
    rounds = [n for n in (record.step, record.step - 1) if n >= 0 and noise_seed(settings, n) == record.seed]
    if not rounds:
        raise ValueError(f"the record of round {record.step} has the seed of no round of this run")
    count, losses = len(update.directions), len(record.losses)
    head = _HEAD.pack(_PLANNED, block, count, losses, rounds[0], update.lr)
    eps = struct.pack(f"<{settings.blocks}d", *(b.eps for b in record.blocks))
    return head + eps + struct.pack(f"<{losses + count}f", *record.losses, *update.coefficients)


def decode_planned(data: bytes, at: int, number: int, settings: RunSettings) -> tuple[Record, int]:
    """The record that begins at `at`, and where the next one does.

    Raises:
        ValueError: the bytes are not such a record, or one that cannot be applied.
    """
    try:
        flags, block, count, losses, seed, rate = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if flags != _PLANNED or block >= settings.blocks or not 1 <= count <= settings.directions[block]:
            raise ValueError(f"a planned record has the flags {flags} and {count} directions of block {block}")
        if losses not in (count + 1, 2 * count, 2 * count + 1) or seed not in (number, number - 1):
            raise ValueError(f"the record of round {number} has {losses} losses of {count} directions of round {seed}")
        eps = struct.unpack_from(f"<{settings.blocks}d", data, at)
        at += 8 * settings.blocks
        values = struct.unpack_from(f"<{losses + count}f", data, at)
        at += 4 * (losses + count)
    except struct.error as error:
        raise ValueError(f"a record is shorter than its counts say ({error})") from None
    if not all(math.isfinite(value) for value in (rate, *values)) or not all(1e-30 <= e <= 1e6 for e in eps):
        raise ValueError("a planned record holds numbers that cannot be")
    updates = tuple(
        BlockUpdate(
            tuple(range(count)) if b == block else (),
            values[losses:] if b == block else (),
            lr=rate if b == block else 0.0,
            eps=eps[b],
            decay=rate * settings.weight_decay if b == block else 0.0,
            distribution=settings.distributions[b],
        )
        for b in range(settings.blocks)
    )
    stochastic = settings.stochastic_rounding
    record = Record(
        number,
        noise_seed(settings, seed),
        settings.distributions[0],
        updates,
        values[:losses],
        stochastic_rounding=stochastic,
        rank=settings.rank,
    )
    return check_record(record), at
