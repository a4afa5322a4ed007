"""The noise address of a round: no two directions of a run share their noise.

The seed of a round is a keyed permutation of the round's number (a balanced Feistel network over BLAKE2s, four rounds: Luby and
Rackoff 1988): different rounds of a run get different seeds, since a permutation has no collisions. Within a round the
participant, the local step and the perturbation are packed into the direction's number without overlap, and the noise contract
gives every (seed, direction) its own Philox counters.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from blockzo.contract import ROUNDING_DIRECTION

_HALF = (1 << 32) - 1


def round_seed(run: bytes, number: int) -> int:
    """Seed of a round, in [0, 2**64).

    Args:
        run: 16 bytes that name the run.
        number: of the round, in [0, 2**32).
    """
    if not 0 <= number <= _HALF:
        raise ValueError(f"round is {number}; expected a number in [0, 2**32)")
    left, right = 0, number
    for step in range(4):
        word = hashlib.blake2s(bytes((step,)) + right.to_bytes(4, "little"), key=run, digest_size=4, person=b"bz-seed")
        left, right = right, left ^ int.from_bytes(word.digest(), "little")
    return left << 32 | right


def first_direction(slot: int, local_step: int, local_steps: int, count: int) -> int:
    """Number of the first of `count` directions that a participant uses in one local step.

    Args:
        slot: 0 where directions are shared, else the participant's number in the round.

    Raises:
        ValueError: the numbers of the contract do not suffice.
    """
    first = (slot * local_steps + local_step) * count
    if first + count > ROUNDING_DIRECTION:
        raise ValueError(
            f"slot {slot} with {local_steps} local steps of {count} directions needs direction {first + count - 1}; "
            f"the contract has {ROUNDING_DIRECTION}: take fewer local steps, directions or clients"
        )
    return first


def pool_numbers(run: bytes, number: int, slot: int, block: int, count: int, pool: int) -> tuple[int, ...]:
    """`count` different numbers below `pool`, a function of the arguments alone: the directions of a round of a finite pool."""
    if count > pool:
        raise ValueError(
            f"a round draws {count} directions of block {block} from a pool of {pool}; expected a larger pool"
        )
    address = struct.pack("<IHI", number, slot, block)
    found: dict[int, None] = {}
    draw = 0
    while len(found) < count:
        word = hashlib.blake2s(address + draw.to_bytes(4, "little"), key=run, digest_size=8, person=b"bz-pool").digest()
        draw += 1
        found.setdefault(int.from_bytes(word, "little") % pool)
    return tuple(found)


def chosen(run: bytes, number: int, attempt: int, names: Sequence[str], count: int | None) -> list[str]:
    """Which participants take part: `count` of `names` (all where None), a function of the arguments alone; sorted."""

    def key(name: str) -> bytes:
        address = number.to_bytes(4, "little") + attempt.to_bytes(4, "little") + name.encode("utf-8")
        return hashlib.blake2s(address, key=run, person=b"bz-pick").digest()

    order = sorted(set(names), key=lambda name: (key(name), name))
    return sorted(order if count is None else order[:count])
