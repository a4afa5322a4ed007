"""What a kernel is told about one step: where the noise is, and the float32 numbers it is multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from blockzo.contract import is_low_rank
from blockzo.journal.record import float32
from blockzo.noise import Noise, check_direction
from blockzo.ops.params import check_finite


@dataclass(frozen=True)
class Step:
    """Coefficients are float32 values; `factor` is the float32 `1 - decay`; `stochastic` rounds 16-bit weights so. `joins`: the
    sum goes on in the next step, whose factor, seed and rounding then count; the weight is moved there.

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
    joins: bool = False
    tables: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What a backend made of this step, kept while it lives."""

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
    given = tuple(float(c) for c in coefficients)
    # 0 and -0 would be one key
    made = _made if all(given) else _made.__wrapped__
    return made(noise, tuple(int(d) for d in directions), given, factor, stochastic)


@lru_cache(maxsize=64)
def _made(
    noise: Noise, directions: tuple[int, ...], coefficients: tuple[float, ...], factor: float, stochastic: bool
) -> Step:
    """Every layer of a forward asks for the same."""
    numbers = tuple(check_finite("a coefficient", float32(c)) for c in coefficients)
    return Step(
        noise.seed,
        noise.distribution,
        tuple(map(check_direction, directions)),
        numbers,
        check_finite("the decay factor", factor),
        stochastic,
        noise.rank or 0,
    )


def joined_steps(
    noises: Sequence[Noise],
    directions: Sequence[int],
    coefficients: Sequence[float],
    factor: float = 1.0,
    stochastic: bool = False,
) -> list[Step]:
    """One update along directions of several seeds, a noise for each: steps whose terms are summed in one sum.

    Raises:
        ValueError: as `make_step`, and where there is no noise, the lengths differ, or noises are of several kinds.
    """
    if not noises or not all(isinstance(noise, Noise) for noise in noises):
        kinds = sorted({type(noise).__name__ for noise in noises})
        raise ValueError(f"noise is a list of {', '.join(kinds) or 'nothing'}; expected at least one blockzo.Noise")
    if not len(noises) == len(directions) == len(coefficients):
        raise ValueError(
            f"{len(noises)} noises for {len(directions)} directions and {len(coefficients)} coefficients; expected one each"
        )
    if len({replace(noise, seed=0) for noise in noises}) > 1:
        raise ValueError(
            f"noise holds several kinds ({', '.join(sorted({f'{n.distribution} of rank {n.rank}' for n in noises}))}); "
            "expected one distribution and one rank"
        )
    # neighbours of one seed are one step
    starts = [k for k in range(len(noises)) if k == 0 or noises[k] != noises[k - 1]]
    parts = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(noises)], strict=True)]
    steps = [make_step(noises[part.start], directions[part], coefficients[part]) for part in parts]
    last = replace(steps[-1], factor=check_finite("the decay factor", factor), stochastic=stochastic)
    return [*(replace(step, joins=True) for step in steps[:-1]), last]
