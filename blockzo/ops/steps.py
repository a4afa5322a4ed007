"""What a kernel is told about one step: where the noise is, and the float32 numbers it is multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from blockzo.contract import is_low_rank
from blockzo.journal.record import float32
from blockzo.noise import Noise, check_direction
from blockzo.ops.params import check_finite


@dataclass(frozen=True)
class Step:
    """Coefficients are float32 values; `factor` is the float32 `1 - decay`; `stochastic` rounds 16-bit weights so.

    `rank` is that of the noise, 0 where it is full. Backends are given it only for tensors whose noise has it, with the
    `width` (columns) of the whole matrix: `of_shape`.
    """

    seed: int
    distribution: str
    directions: tuple[int, ...]
    coefficients: tuple[float, ...]
    factor: float = 1.0
    stochastic: bool = False
    rank: int = 0
    width: int = 0

    def of_shape(self, shape: Sequence[int]) -> Step:
        """The step for a whole tensor of this shape."""
        if not self.rank:
            return self
        low = is_low_rank(shape, self.rank)
        return replace(self, rank=self.rank if low else 0, width=shape[1] if low else 0)


def make_step(
    noise: Noise,
    directions: Sequence[int],
    coefficients: Sequence[float],
    factor: float = 1.0,
    stochastic: bool = False,
) -> Step:
    if not isinstance(noise, Noise):
        raise ValueError(f"noise is a {type(noise).__name__}; expected blockzo.Noise(seed, distribution, rank)")
    if len(directions) != len(coefficients):
        raise ValueError(f"{len(coefficients)} coefficients for {len(directions)} directions; expected one each")
    numbers = tuple(check_finite("a coefficient", float32(float(c))) for c in coefficients)
    return Step(
        noise.seed,
        noise.distribution,
        tuple(check_direction(int(d)) for d in directions),
        numbers,
        check_finite("the decay factor", factor),
        stochastic,
        noise.rank or 0,
    )
