"""Records of a run as they travel: what the run's settings say already is left out (docs/federated.md, "Record").

The full record, as a journal holds it, comes out again exactly; one that would not is refused when it is written.
"""

from __future__ import annotations

import struct

from blockzo.federated.protocol.addresses import noise_seed, shared_directions
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.outside import MOST_SCALARS
from blockzo.journal.record import BlockUpdate, Record, check_record, float32, pack_floats, unpack_floats

_SIGNS, _EXPLICIT = 1, 2


def block_counts(settings: RunSettings) -> list[int]:
    """Directions of each block in the record of a round with shared directions."""
    return [settings.local_steps * count for count in settings.directions]


def make_record(
    settings: RunSettings,
    number: int,
    loss: float,
    directions: list[tuple[int, ...]],
    coefficients: list[tuple[float, ...]],
    rates: tuple[float, ...],
) -> Record:
    """The record of round `number`; `coefficients` hold the learning rate."""
    updates = tuple(
        BlockUpdate(
            directions[b],
            coefficients[b],
            lr=rates[b],
            eps=settings.eps[b],
            # a block without directions rests: its weights do not decay either
            decay=rates[b] * settings.weight_decay if directions[b] else 0.0,
            distribution=settings.distributions[b],
        )
        for b in range(settings.blocks)
    )
    seed = noise_seed(settings, number)
    stochastic = settings.stochastic_rounding
    return Record(number, seed, settings.distributions[0], updates, (float32(loss),), stochastic_rounding=stochastic)


def sign_coefficient(settings: RunSettings, block: int, rate: float) -> float:
    """Size of a coefficient where scalars are combined to signs: the mean over the directions of +-1."""
    return float32(rate / max(1, block_counts(settings)[block]))


def encode_record(record: Record, settings: RunSettings) -> bytes:
    in_order = [b.directions for b in record.blocks] == shared_directions(settings, record.step)
    signs = settings.combining.signs
    parts = [struct.pack("<Bf", signs * _SIGNS | (not in_order) * _EXPLICIT, record.losses[0])]
    parts += [struct.pack("<d", block.lr) for block in record.blocks]
    for block in record.blocks:
        if not in_order:
            parts.append(struct.pack(f"<I{len(block.directions)}I", len(block.directions), *block.directions))
        if not signs:
            parts.append(pack_floats(block.coefficients))
    if signs:
        parts.append(pack_signs([c for block in record.blocks for c in block.coefficients]))
    data = b"".join(parts)
    again, end = decode_record(data, 0, record.step, settings)
    if again != record or end != len(data):
        raise ValueError(f"the record of round {record.step} is not one of this run: its settings differ")
    return data


def decode_record(data: bytes, at: int, number: int, settings: RunSettings) -> tuple[Record, int]:
    """The record that begins at `at`, and where the next one does.

    Raises:
        ValueError: the bytes are not such a record, or one that cannot be applied.
    """
    try:
        flags, loss = struct.unpack_from("<Bf", data, at)
        at += 5
        if flags & ~(_SIGNS | _EXPLICIT) or bool(flags & _SIGNS) != (settings.combining.signs):
            raise ValueError(f"a record has the flags {flags}, which do not belong to this run")
        if flags & _EXPLICIT and not settings.own_directions:
            raise ValueError("a record lists directions, in a run whose clients share those of its seed")
        rates = struct.unpack_from(f"<{settings.blocks}d", data, at)
        at += 8 * settings.blocks
        directions: list[tuple[int, ...]] = []
        coefficients: list[tuple[float, ...]] = []
        expected = [()] * settings.blocks if flags & _EXPLICIT else shared_directions(settings, number)
        for found in expected:
            count = len(found)
            if flags & _EXPLICIT:
                (count,) = struct.unpack_from("<I", data, at)
                if count > MOST_SCALARS:
                    raise ValueError(f"a record claims {count} directions; expected at most {MOST_SCALARS}")
                found = struct.unpack_from(f"<{count}I", data, at + 4)
                at += 4 + 4 * count
            directions.append(found)
            if not flags & _SIGNS:
                coefficients.append(unpack_floats(data, count, at))
                at += 4 * count
        if flags & _SIGNS:
            signs, at = unpack_signs(data, at, sum(map(len, directions)))
            every = iter(signs)
            for block, found in enumerate(directions):
                size = sign_coefficient(settings, block, rates[block])
                coefficients.append(tuple(size * next(every) for _ in found))
    except struct.error as error:
        raise ValueError(f"a record is shorter than its counts say ({error})") from None
    return check_record(make_record(settings, number, loss, directions, coefficients, rates)), at


def pack_signs(values: list[float]) -> bytes:
    """One bit each, least significant first: 1 for a negative number."""
    result = bytearray(-(-len(values) // 8))
    for place, value in enumerate(values):
        result[place >> 3] |= (value < 0) << (place & 7)
    return bytes(result)


def unpack_signs(data: bytes, at: int, count: int) -> tuple[list[float], int]:
    """`count` numbers of 1.0 and -1.0, and where the bytes end; bits beyond the last must be 0."""
    end = at + -(-count // 8)
    part = data[at:end]
    if len(part) != end - at or (count % 8 and part[-1] >> count % 8):
        raise ValueError(
            f"{count} signs need {end - at} bytes with zeros after the last; found {len(part)} or other bits"
        )
    return [-1.0 if part[place >> 3] >> (place & 7) & 1 else 1.0 for place in range(count)], end
