"""What a step of a baseline in plain torch cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counted:
    flops: int
    forwards: int
