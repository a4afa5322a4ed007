"""What a sum over clients may hold, and how it fails."""

from __future__ import annotations

MOST_CLIENTS = 1024


class SumError(ValueError):
    """A message or a state that a secure sum cannot go on with; the text says what was found.

    Attributes: `client`, whose fault it is, where that is known.
    """

    client: str | None = None
