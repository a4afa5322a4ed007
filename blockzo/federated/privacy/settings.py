"""Differential privacy of a run: clipping, noise on scalars, and what it costs (docs/privacy.md has the argument).

Values live on a grid of integers, so that sums are exact, the bound on one unit's influence holds to the last bit, and the
noise is an exact discrete Gaussian (discrete_gaussian.py). What leaves is a function of the noisy integers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from blockzo.federated.privacy import accounting
from blockzo.federated.privacy.discrete_gaussian import bernoulli, discrete_gaussian
from blockzo.journal.outside import build

MODES, UNITS = ("central", "local"), ("client", "example")
GRID_BITS = 22
"""Sums of a client lie within 2^22 steps of the grid: float32 carries them in a reply without loss."""


@dataclass(frozen=True)
class PrivacySettings:
    """What is protected, and how.

    Attributes:
        mode: "central": the server, which is trusted, adds noise before the journal; "local": every client does before its
            reply.
        clip: L2 norm that one unit's scalars of a round are cut to, in units of a scalar (change of the loss over eps).
        noise_multiplier: standard deviation of the noise, as a multiple of `clip`.
        delta: of (epsilon, delta); well below 1 over the number of units.
        clients: central: a sum is divided by this number however many reply, a constant, so that who replies does not change
            what another one weighs. Clients asked in a round; with `sampling_rate`, that times all clients.
        sampling_rate: central: every client takes part in a round with this probability, drawn in secret from the operating
            system's generator (Poisson); 1: whoever the server asks, and no gain from sampling is counted.
        unit: "client": the whole data of a client is one unit; "example": one row is, whose own scalars are clipped.
        batch: unit "example": rows of a client's batch at most; a client's sum is divided by it.
        survivors: with secure sums: the least number of clients in a sum whose noise counts; every client adds a share for so
            many (noise_shares.py), and gives nothing to a sum of fewer. 0: without secure sums.
    """

    mode: str
    clip: float
    noise_multiplier: float
    delta: float
    clients: float = 1.0
    sampling_rate: float = 1.0
    unit: str = "client"
    batch: int = 1
    survivors: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.unit not in UNITS:
            raise ValueError(
                f"privacy mode is {self.mode!r}, unit {self.unit!r}; expected one of {MODES} and one of {UNITS}"
            )
        for name, lowest, most in (
            ("clip", 1e-30, 1e30),
            ("noise_multiplier", 1e-3, 1e6),
            ("delta", 1e-300, 0.5),
            ("clients", 1e-6, 1e9),
            ("sampling_rate", 1e-9, 1.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= most:
                raise ValueError(f"privacy {name} is {value!r}; expected a number from {lowest:g} to {most:g}")
            object.__setattr__(self, name, float(value))
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or not 1 <= self.batch <= 1 << 14:
            raise ValueError(f"privacy batch is {self.batch!r}; expected a number of rows from 1 to {1 << 14}")
        if self.unit == "client" and self.batch != 1:
            raise ValueError(f'privacy batch is {self.batch} with unit "client"; it belongs to unit "example"')
        if isinstance(self.survivors, bool) or not isinstance(self.survivors, int) or self.survivors < 0:
            raise ValueError(
                f"privacy survivors is {self.survivors!r}; expected a number of clients, 0 without secure sums"
            )
        if self.sampling_rate < 1 and (self.mode, self.unit) != ("central", "client"):
            raise ValueError(
                f"privacy sampling_rate is {self.sampling_rate} in mode {self.mode!r} with unit {self.unit!r}; sampling is "
                'counted in mode "central" with unit "client" alone: set it to 1'
            )

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        if not self.survivors:
            # a run that has no use for it is the run that it was before this setting
            del found["survivors"]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacySettings:
        """From a mapping; what it leaves out has its default.

        Raises:
            ValueError: a setting is unknown, missing or out of range.
        """
        return build(cls, values, "privacy")

    @property
    def levels(self) -> int:
        """Steps of the grid in `clip`: the L2 norm that one unit adds to a sum of integers at most."""
        return 1 << (GRID_BITS - (self.batch - 1).bit_length())

    @property
    def variance(self) -> Fraction:
        """Of the noise on every integer."""
        return (Fraction(self.noise_multiplier) * self.levels) ** 2

    @property
    def share_variance(self) -> Fraction:
        """With `survivors`: of what one client adds to every integer."""
        return self.variance / self.survivors

    def clipped(self, values: Sequence[float]) -> list[int]:
        """One unit's scalars on the grid, their L2 norm at most `levels`; rounded towards 0, so that none grows.

        All of them are 0 where one is not finite: a unit's vector is a function of that unit alone, for every input, and nothing
        of it is ever refused.
        """
        if not all(map(math.isfinite, values)):
            return [0] * len(values)
        return _cut(_integers(values, self.clip / self.levels, int), self.levels)

    def mean_of(self, units: Iterable[Sequence[float]], scalars: int) -> tuple[float, ...]:
        """A client's scalars from those of its units: clipped, summed, divided by `batch`. Still without noise.

        Args:
            units: scalars of every example; with unit "client" those of the client, once.
            scalars: of each.
        """
        sums = [0] * scalars
        for values in units:
            sums = [a + b for a, b in zip(sums, self.clipped(values), strict=True)]
        return self._values(sums, self.batch)

    def _values(self, sums: Sequence[int], count: float) -> tuple[float, ...]:
        return tuple(v * (self.clip / self.levels) / count for v in sums)

    def integers(self, values: Sequence[float]) -> list[int]:
        """The grid's integers of a client's scalars (of `mean_of`), their L2 norm at most `levels` x `batch`: cut again, should
        the client not have done it.

        Raises:
            ValueError: one is not finite; no client that clips sends such.
        """
        bound = self.levels * self.batch
        return _cut(_integers(values, self.clip / bound, round), bound)

    def scaled(self, sums: Sequence[int]) -> tuple[float, ...]:
        """Central: the record's scalars from a sum over all clients, noise included."""
        return self._values(sums, self.clients * self.batch)

    def noisy(self, values: Sequence[float]) -> tuple[float, ...]:
        """Local: a client's scalars (of `mean_of`) with noise of its own."""
        return self._values([v + discrete_gaussian(self.variance) for v in self.integers(values)], self.batch)

    def noisy_mean(self, replies: Iterable[Sequence[float]], scalars: int) -> list[float]:
        """Central: sum of the replies' integers, plus noise, over the constant `clients` x `batch`."""
        sums = [0] * scalars
        for reply in replies:
            sums = [a + b for a, b in zip(sums, self.integers(reply), strict=True)]
        return list(self._values([v + discrete_gaussian(self.variance) for v in sums], self.clients * self.batch))

    def sample(self, names: Iterable[str]) -> list[str]:
        """Who takes part in a round with `sampling_rate`: drawn in secret; the public seed of the run must not tell."""
        rate = Fraction(self.sampling_rate)
        return [name for name in sorted(names) if bernoulli(rate.numerator, rate.denominator)]

    def epsilon(self, rounds: int) -> float:
        """Epsilon at `delta` after so many rounds, for one unit added or taken away; by dp-accounting.

        The Gaussian mechanism, Poisson sampled with `sampling_rate`: a function of the settings and the number of rounds alone
        (`blockzo/federated/privacy/accounting.py`). Mode "local": against whoever sees the client's replies.

        Raises:
            ImportError: dp-accounting is not installed.
        """
        accounting.need_accounting()
        if rounds < 0:
            raise ValueError(f"rounds is {rounds}; expected 0 or more")
        if not rounds:
            return 0.0
        renyi = self.noise_multiplier
        if self.survivors:
            renyi = accounting.of_shares(renyi, self.share_variance)
        on_grid = accounting.continuous(self.noise_multiplier, self.variance, max(1, self.survivors))
        return accounting.epsilon(on_grid, renyi, self.sampling_rate, rounds, self.delta)


def _integers(values: Sequence[float], step: float, rounded: Callable[[float], int]) -> list[int]:
    if not all(map(math.isfinite, values)):
        raise ValueError("a scalar is not finite; expected finite numbers (look at the losses)")
    most = 2.0**500
    return [rounded(max(-most, min(most, value / step))) for value in values]


def _cut(found: list[int], bound: int) -> list[int]:
    """Scaled to an L2 norm of `bound` at most, towards 0."""
    squares = sum(v * v for v in found)
    if squares <= bound * bound:
        return found
    norm = math.isqrt(squares - 1) + 1
    return [(abs(v) * bound // norm) * (1 if v > 0 else -1) for v in found]
