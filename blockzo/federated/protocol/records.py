"""Records of a run as they travel: what the run's settings say already is left out (docs/federated.md, "Record").

The full record, as a journal holds it, comes out again exactly; one that would not is refused when it is written.
"""

from __future__ import annotations

import struct

from blockzo.federated.protocol.addresses import directions_of_steps, noise_seed
from blockzo.federated.protocol.examples import Contributors, contributors_of, directions_of
from blockzo.federated.protocol.planned_records import decode_planned, encode_planned
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.outside import MOST_SCALARS
from blockzo.journal.record import BlockUpdate, Record, check_record, float32, pack_floats, unpack_floats

_SIGNS, _EXPLICIT, _COUNTED = 1, 2, 4


def block_counts(settings: RunSettings) -> list[int]:
    """Directions of each block in the record of a round with shared directions."""
    return [settings.local_steps * count for count in settings.numbered]


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
    return Record(
        number,
        noise_seed(settings, number),
        settings.distributions[0],
        updates,
        (float32(loss),),
        stochastic_rounding=settings.stochastic_rounding,
        rank=settings.rank,
    )


def sign_coefficient(settings: RunSettings, block: int, rate: float) -> float:
    """Size of a coefficient where scalars are combined to signs: the mean over the directions of +-1."""
    return float32(rate / max(1, block_counts(settings)[block]))


def _lists_clients(settings: RunSettings) -> bool:
    """May a record say whose directions it holds, and of how many examples?"""
    return settings.counted or bool(settings.per_example and settings.own_directions)


def encode_record(record: Record, settings: RunSettings) -> bytes:
    data = encode_planned(record, settings) if settings.planned else _encoded(record, settings)
    again, end = decode_record(data, 0, record.step, settings)
    if again != record or end != len(data):
        raise ValueError(f"the record of round {record.step} is not one of this run: its settings differ")
    return data


def _encoded(record: Record, settings: RunSettings) -> bytes:
    clients = contributors_of(record, settings) if _lists_clients(settings) else None
    in_order = [b.directions for b in record.blocks] == directions_of_steps(settings, record.step)
    explicit = clients is None and not in_order
    signs = settings.combining.signs
    flags = signs * _SIGNS | explicit * _EXPLICIT | (clients is not None) * _COUNTED
    parts = [struct.pack("<Bf", flags, record.losses[0])]
    parts += [struct.pack("<d", block.lr) for block in record.blocks]
    if clients is not None:
        parts.append(struct.pack("<I", len(clients)))
        parts += [struct.pack(f"<{1 + len(counts)}H", slot, *counts) for slot, counts in clients]
    for block in record.blocks:
        if explicit:
            parts.append(struct.pack(f"<I{len(block.directions)}I", len(block.directions), *block.directions))
        if not signs:
            parts.append(pack_floats(block.coefficients))
    if signs:
        parts.append(pack_signs([c for block in record.blocks for c in block.coefficients]))
    return b"".join(parts)


def decode_record(data: bytes, at: int, number: int, settings: RunSettings) -> tuple[Record, int]:
    """The record that begins at `at`, and where the next one does.

    Raises:
        ValueError: the bytes are not such a record, or one that cannot be applied.
    """
    if settings.planned:
        return decode_planned(data, at, number, settings)
    try:
        flags, loss = struct.unpack_from("<Bf", data, at)
        at += 5
        known = _SIGNS | _EXPLICIT | _COUNTED * _lists_clients(settings)
        if flags & ~known or flags & _EXPLICIT and flags & _COUNTED or bool(flags & _SIGNS) != settings.combining.signs:
            raise ValueError(f"a record has the flags {flags}, which do not belong to this run")
        if flags & _EXPLICIT and not settings.own_directions:
            raise ValueError("a record lists directions, in a run whose clients share those of its seed")
        rates = struct.unpack_from(f"<{settings.blocks}d", data, at)
        at += 8 * settings.blocks
        directions: list[tuple[int, ...]] = []
        coefficients: list[tuple[float, ...]] = []
        expected: list[tuple[int, ...]] = [()] * settings.blocks
        if flags & _COUNTED:
            clients, at = _clients(data, at, settings)
            expected = directions_of(clients, settings, number)
        elif not flags & _EXPLICIT:
            expected = directions_of_steps(settings, number)
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


def _clients(data: bytes, at: int, settings: RunSettings) -> tuple[Contributors, int]:
    """Whose directions a record holds, and where that ends.

    Raises:
        ValueError: clients or examples that this run cannot have.
    """
    (count,) = struct.unpack_from("<I", data, at)
    if not 1 <= count <= settings.slots:
        raise ValueError(f"a record of {count} clients; expected 1 to {settings.slots}")
    at += 4
    found: Contributors = []
    fewest = 1 if settings.counted else settings.per_example
    for _ in range(count):
        slot, *counts = struct.unpack_from(f"<{1 + settings.local_steps}H", data, at)
        at += 2 + 2 * settings.local_steps
        if not (found[-1][0] if found else -1) < slot < settings.slots:
            raise ValueError(f"a record lists slot {slot}; expected ascending ones below {settings.slots}")
        if not all(fewest <= n <= settings.per_example for n in counts):
            raise ValueError(
                f"a record of {counts[:8]} examples; expected {fewest} to {settings.per_example} a local step"
            )
        found.append((slot, tuple(counts)))
    total = sum(n for _, counts in found for n in counts) * sum(settings.directions)
    if 4 * total > len(data) - at and not settings.combining.signs:
        raise ValueError(f"a record has {len(data) - at} bytes for {total} coefficients")
    return found, at


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
