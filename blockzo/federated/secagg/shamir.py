"""Secret sharing: any `threshold` shares give the secret, fewer say nothing about it (Shamir, CACM 1979)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

PRIME = (1 << 256) + 297
"""The first prime above 2^256, so that every secret of 32 bytes is an element of the field."""
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, threshold: int, shares: int) -> list[bytes]:
    """Shares for the participants 1 to `shares`, 33 bytes each: a random polynomial of degree threshold - 1 at their numbers.

    Args:
        secret: 32 bytes.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= shares:
        raise ValueError(
            f"a secret of {len(secret)} bytes, threshold {threshold} of {shares}; expected {SECRET_BYTES} bytes and "
            "1 <= threshold <= shares"
        )
    factors = [int.from_bytes(secret, "little"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]

    def at(x: int) -> int:
        value = 0
        for factor in reversed(factors):
            value = (value * x + factor) % PRIME
        return value

    return [at(x).to_bytes(SHARE_BYTES, "little") for x in range(1, shares + 1)]


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from shares by participant number (1, 2, ...); `threshold` of them are used.

    Raises:
        ValueError: too few, or shares that belong to no secret of 32 bytes.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares; expected {threshold} to recover a secret")
    points = {x: int.from_bytes(shares[x], "little") for x in sorted(shares)[:threshold]}
    if any(len(share) != SHARE_BYTES for share in shares.values()) or any(y >= PRIME for y in points.values()):
        raise ValueError(f"a share is not a number of the field; expected {SHARE_BYTES} bytes below the prime")
    # Lagrange at 0
    total = 0
    for x, y in points.items():
        top, bottom = 1, 1
        for other in points:
            if other != x:
                top, bottom = top * other % PRIME, bottom * (other - x) % PRIME
        total = (total + y * top * pow(bottom, -1, PRIME)) % PRIME
    if total >> 256:
        raise ValueError("the shares give no secret of 32 bytes: one of them is wrong")
    return total.to_bytes(SECRET_BYTES, "little")
