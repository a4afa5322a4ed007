"""One optimisation step as data: what a journal stores, a client sends and `replay_` applies."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from blockzo.contract import DISTRIBUTIONS, check_direction, check_seed

if TYPE_CHECKING:
    from blockzo.noise import Noise

RECORD_VERSION = 1


def float32(value: float) -> float:
    """`value` rounded to float32; infinite where it is too large for one."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


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
    """

    step: int
    seed: int
    distribution: str
    blocks: tuple[BlockUpdate, ...]
    losses: tuple[float, ...] = ()
    stochastic_rounding: bool = False
    digest: str | None = None
    version: int = field(default=RECORD_VERSION)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution is {self.distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}")
        if self.version != RECORD_VERSION:
            raise ValueError(f"record version is {self.version}; this blockzo knows version {RECORD_VERSION}")
        # one form for one meaning, so that a record survives its bytes
        same = self.distribution
        blocks = (replace(b, distribution=None) if b.distribution == same else b for b in self.blocks)
        object.__setattr__(self, "blocks", tuple(blocks))
        if not self.blocks:
            raise ValueError("a record has no blocks; expected an update for each block of the model")
        if not 0 <= self.step < 1 << 32:
            raise ValueError(f"step is {self.step}; expected an integer in [0, 2**32)")

    def noise(self, block: int) -> Noise:
        """The noise of one block."""
        from blockzo.noise import Noise  # records are read where torch is not

        return Noise(self.seed, self.blocks[block].distribution or self.distribution)

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


def check_sequence(records: Iterable[Record], first: int = 0) -> None:
    """Raises ValueError unless the records' steps are consecutive from `first`."""
    for expected, record in enumerate(records, first):
        if record.step != expected:
            raise ValueError(f"record {expected} holds step {record.step}; records must be consecutive and complete")
