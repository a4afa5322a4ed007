"""What a server knows of the round that is open, and what it tells of one that is closed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockzo.federated.protocol import messages as m
from blockzo.journal.record import Record

if TYPE_CHECKING:
    from blockzo.federated.protocol.settings import RunSettings
    from blockzo.federated.secagg.round import SecureRound


@dataclass(frozen=True)
class RoundResult:
    """A closed round. `record` is None where it lacked a quorum: it is tried again with other clients.

    With privacy, `epsilon` is what all rounds so far cost, and `loss` is NaN: no client tells it. With a secure sum and equal
    weighting `examples` counts clients.
    """

    number: int
    attempt: int
    asked: int
    participants: tuple[str, ...]
    examples: int
    loss: float
    record: Record | None
    epsilon: float | None = None


@dataclass
class OpenRound:
    """An attempt at a round, and what its earlier attempts leave."""

    number: int
    attempt: int
    began: float
    slots: dict[str, int] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    replies: dict[str, m.Reply] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    """Asked, and known not to answer."""
    repaired: set[str] = field(default_factory=set)
    """Sent back to the base in this round; once is enough."""
    sample: list[str] | None = None
    """Drawn in secret, once a round."""
    sum: SecureRound | None = None
    """Of this attempt, in a run with secure sums."""
    spent: set[str] = field(default_factory=set)
    """In the last attempt's sum, which may be known: another with almost the same clients would tell of one."""
    exhausted: set[str] = field(default_factory=set)
    """In a run with privacy: said that they are in a sum of this round already."""
    reached: set[str] = field(default_factory=set)
    """Asked and there when they were, in any attempt; the quorum of a run with central noise."""
    made: tuple[Record, int] | None = None
    """With privacy: the record and its rows, once the noise is drawn. No reply is taken after it."""
    blamed: set[str] = field(default_factory=set)
    """Let the last attempt at a sum fail."""

    def preferred(self, names: set[str], enough: int) -> set[str]:
        """Those of `names` that the next attempt should ask, where they are enough."""
        for left_out in (self.spent | self.blamed, self.blamed):
            if len(names - left_out) >= enough:
                return names - left_out
        return names

    def seated(self, names: Iterable[str], settings: RunSettings) -> list[str]:
        """Gives clients the directions they keep in this round; without those for whom none are left."""
        for name in names:
            if not settings.own_directions:
                self.slots[name] = 0
            elif len(self.slots) < settings.slots:
                self.slots.setdefault(name, len(self.slots))
        return [name for name in names if name in self.slots]

    def complete(self, now: float, deadline: float) -> bool:
        """Everyone answered, or the time is over."""
        return not self.waiting() or now - self.began >= deadline

    def given_away(self, quorum: int) -> bool:
        """May clients' values be in a sum of this round, so that no other one can be had?"""
        assert self.sum is not None
        left = len(self.asked - self.exhausted)
        return self.sum.phase >= 2 or bool(self.exhausted) and left < quorum

    def waiting(self) -> set[str]:
        """Whose message is missing, and may still come."""
        due, came = (self.asked, set(self.replies)) if self.sum is None else (self.sum.due, set(self.sum.taken))
        return due - came - self.silent
