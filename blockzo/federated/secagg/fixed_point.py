"""Numbers as 64-bit integers, so that sums of masked values are exact and do not depend on their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

WORD = 1 << 64


@dataclass(frozen=True)
class FixedPoint:
    """value = integer / 2^bits; a sum of `terms` values, each within `largest`, stays within 63 bits.

    Attributes:
        bits: after the point; rounding changes a value by 2^-(bits + 1) at most.
        terms: values in a sum, at most (clients of a round).
    """

    bits: int = 20
    terms: int = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 62 or not 1 <= self.terms <= 1 << 20:
            raise ValueError(f"bits is {self.bits}, terms {self.terms}; expected 0 to 62 and 1 to {1 << 20}")

    @property
    def _most(self) -> int:
        return ((1 << 63) - 1) // self.terms

    @property
    def largest(self) -> float:
        """Of a value that may be encoded."""
        return self._most / 2.0**self.bits

    def encode(self, value: float, times: int = 1) -> int:
        """The integer nearest to value * times * 2^bits (ties to even).

        Raises:
            ValueError: not finite, or too large for the sum.
        """
        if not math.isfinite(value):
            raise ValueError(f"a value is {value}; expected a finite number")
        found = round(Fraction(value) * times * (1 << self.bits))
        if abs(found) > self._most:
            raise ValueError(
                f"{value:g} x {times} is too large for a sum of {self.terms} values with {self.bits} bits after the point; "
                f"expected at most {self.largest:g} (fewer bits, fewer terms or fewer examples)"
            )
        return found

    def decode(self, total: int) -> float:
        return float(Fraction(total, 1 << self.bits))


def to_words(values: Sequence[int]) -> list[int]:
    """Modulo 2^64."""
    return [value % WORD for value in values]


def from_words(words: Sequence[int]) -> list[int]:
    """The integers in [-2^63, 2^63) that words stand for."""
    return [word - WORD if word >> 63 else word for word in words]
