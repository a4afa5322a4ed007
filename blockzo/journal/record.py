"""One optimisation step as data: what a journal stores, a client sends and `replay_` applies."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from blockzo.contract import DISTRIBUTIONS, check_direction, check_rank, check_seed
from blockzo.journal.outside import MOST_SCALARS

if TYPE_CHECKING:
    from blockzo.noise import Noise

RECORD_VERSION = 1


_SMALLEST_NORMAL = 2.0**-126
_UNIT = 2.0**-149
"""The smallest float32: all subnormal ones are a whole number of it."""


def float32(value: float) -> float:
    """`value` rounded to float32; infinite where it is too large for one. In any float mode (torch.set_flush_denormal)."""
    if 0.0 < abs(value) < _SMALLEST_NORMAL:
        # a conversion by the processor may flush it; a float64 of this size it does not touch
        return math.copysign(round(abs(value) / _UNIT) * _UNIT, value)
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def pack_floats(values: Sequence[float]) -> bytes:
    """Little-endian float32 numbers, in any float mode."""
    if any(0.0 < abs(value) < _SMALLEST_NORMAL for value in values):
        return b"".join(
            struct.pack("<I", round(abs(value) / _UNIT) | (value < 0) << 31)
            if 0.0 < abs(value) < _SMALLEST_NORMAL
            else struct.pack("<f", value)
            for value in values
        )
    return struct.pack(f"<{len(values)}f", *values)


def unpack_floats(data: bytes, count: int, at: int = 0) -> tuple[float, ...]:
    """What `pack_floats` gave.

    Raises:
        struct.error: there are fewer bytes.
    """
    values: tuple[float, ...] = struct.unpack_from(f"<{count}f", data, at)
    if 0.0 in values:
        bits = struct.unpack_from(f"<{count}I", data, at)
        # where the processor flushes, a subnormal one is 0.0 too
        return tuple(
            value if value else math.copysign((b & 0x7FFFFF) * _UNIT, -1.0 if b >> 31 else 1.0)
            for value, b in zip(values, bits, strict=True)
        )
    return values


def decay_factor(decay: float) -> float:
    """The float32 factor of decoupled weight decay, computed once in float64 (noise contract v1)."""
    return float32(1.0 - decay)


@dataclass(frozen=True)
class BlockUpdate:
    """What one step does to one block: `w <- round(w * (1 - decay) - sum_k coefficients[k] * z[directions[k]])`.

    `coefficients` are float32 values that already hold the learning rate; `lr` and `eps` say how they came about.
    `distribution` is that of this block's noise; the record's where None. No directions and no decay: nothing changes.
    """

    directions: tuple[int, ...]
    coefficients: tuple[float, ...]
    lr: float = 0.0
    eps: float = 0.0
    decay: float = 0.0
    distribution: str | None = None

    def __post_init__(self) -> None:
        if self.distribution is not None and self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {self.distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}")
        if len(self.directions) != len(self.coefficients):
            raise ValueError(
                f"{len(self.coefficients)} coefficients for {len(self.directions)} directions; expected one each"
            )
        for direction in self.directions:
            check_direction(direction)
        object.__setattr__(self, "coefficients", tuple(float32(c) for c in self.coefficients))
        for name, value in (("lr", self.lr), ("eps", self.eps), ("decay", self.decay)):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}; expected a finite number")
        for value in self.coefficients:
            if not math.isfinite(value):
                raise ValueError(
                    f"a coefficient is {value}; expected a finite float32 (lower the learning rate or look at the losses)"
                )


@dataclass(frozen=True)
class Record:
    """One step. Applying it regenerates the noise from `seed` and gives the very bits that training gave.

    Args:
        step: number of the step, from 0.
        seed: seed of the step's noise, in [0, 2**64).
        distribution: "rademacher" or "gaussian".
        blocks: one update for each block of the model, in order.
        losses: the leaf losses of the evaluation tree, in its order (information; replay does not need them).
        stochastic_rounding: 16-bit weights are rounded stochastically.
        digest: digest of the weights after the step, or None.
        rank: of the noise of matrices, or None where it is full.
    """

    step: int
    seed: int
    distribution: str
    blocks: tuple[BlockUpdate, ...]
    losses: tuple[float, ...] = ()
    stochastic_rounding: bool = False
    digest: str | None = None
    rank: int | None = None
    version: int = field(default=RECORD_VERSION)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_rank(self.rank)
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {self.distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}")
        if self.version != RECORD_VERSION:
            raise ValueError(f"record version is {self.version}; this blockzo knows version {RECORD_VERSION}")
        # one form for one meaning, so that a record survives its bytes
        same = self.distribution
        blocks = (replace(b, distribution=None) if b.distribution == same else b for b in self.blocks)
        object.__setattr__(self, "blocks", tuple(blocks))
        object.__setattr__(self, "losses", tuple(float32(loss) for loss in self.losses))
        if not self.blocks:
            raise ValueError("a record has no blocks; expected an update for each block of the model")
        if not 0 <= self.step < 1 << 32:
            raise ValueError(f"step is {self.step}; expected an integer in [0, 2**32)")

    def noise(self, block: int) -> Noise:
        """The noise of one block."""
        from blockzo.noise import Noise  # records are read where torch is not

        return Noise(self.seed, self.blocks[block].distribution or self.distribution, self.rank)

    @property
    def directions(self) -> tuple[tuple[int, ...], ...]:
        return tuple(block.directions for block in self.blocks)

    @property
    def scalars(self) -> tuple[tuple[float, ...], ...]:
        return tuple(block.coefficients for block in self.blocks)

    @property
    def lr(self) -> tuple[float, ...]:
        return tuple(block.lr for block in self.blocks)

    @property
    def eps(self) -> tuple[float, ...]:
        return tuple(block.eps for block in self.blocks)

    @property
    def weight_decay(self) -> tuple[float, ...]:
        return tuple(block.decay for block in self.blocks)


def check_record(record: Record, blocks: int | None = None) -> Record:
    """The one check of all that write a record to disk or apply it: what passes can be applied to every block.

    Args:
        blocks: of the model; any number where None.

    Returns:
        The record.

    Raises:
        ValueError: names the step, the block and the number that cannot be; nothing was written.
    """
    if blocks is not None and len(record.blocks) != blocks:
        raise ValueError(f"the record of step {record.step} has {len(record.blocks)} blocks; expected {blocks}")
    check_seed(record.seed)
    if isinstance(record.step, bool) or not isinstance(record.step, int):
        raise ValueError(f"step is {record.step!r}; expected an integer")
    scalars = max(len(record.losses), sum(len(block.directions) for block in record.blocks))
    if len(record.blocks) >= 1 << 16 or scalars > MOST_SCALARS:
        raise ValueError(
            f"the record of step {record.step} has {len(record.blocks)} blocks and {scalars} directions or losses; expected at "
            f"most {(1 << 16) - 1} and {MOST_SCALARS}"
        )
    for number, block in enumerate(record.blocks):
        where = f"step {record.step} cannot be applied: block {number}"
        if len(block.directions) != len(block.coefficients):
            raise ValueError(
                f"{where} has {len(block.coefficients)} coefficients for {len(block.directions)} directions"
            )
        try:
            for direction in block.directions:
                check_direction(direction)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for what, value in (("lr", block.lr), ("eps", block.eps), ("decay", block.decay)):
            if not math.isfinite(float32(value)):
                raise ValueError(
                    f"{where} has {what} {value:g}; expected a finite float32 number (lower the rate, eps or weight decay)"
                )
        if not math.isfinite(decay_factor(block.decay)):
            raise ValueError(f"{where} has decay {block.decay:g}; expected 1 - decay to be a finite float32 number")
        for value in block.coefficients:
            if not math.isfinite(float32(value)):
                raise ValueError(f"{where} has a coefficient {value:g}; expected a finite float32 number")
    return record
