"""What participants and server say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blockzo.journal.outside import Position, Refusal, Word, printable

DIVERGED, INVALID, STALE, UNWANTED, MISMATCH = "diverged", "invalid", "stale", "unwanted", "mismatch"
SPENT = "spent"
CODES = (DIVERGED, INVALID, STALE, UNWANTED, MISMATCH, SPENT)
"""Why something is refused: weights differ; the message is wrong; its round is over; nobody asked; another run; a client is in a
sum of the round already, and privacy allows one."""


class MessageError(Refusal):
    """Bytes that are not a message of this run; the text says what was found."""


@dataclass(frozen=True)
class Hello:
    """A participant that comes or comes back; `position`: records that its weights hold."""

    contract: Word
    base_digest: Word
    layout_digest: Word
    position: Position


@dataclass(frozen=True)
class Welcome:
    settings: dict[str, Any]
    base_digest: Word
    position: Position


@dataclass(frozen=True)
class Task:
    """Work for round `number`, at the weights after `number` records; the last of them come along, encoded, from `first` on.

    `attempt` and `nonce` (16 bytes) name the secure sum that the work goes into; without one 0 and no bytes.
    """

    number: int
    first: int
    records: bytes
    slot: int = 0
    wants_digest: bool = False
    evaluate: bool = False
    attempt: int = 0
    nonce: bytes = b""

    @property
    def what(self) -> tuple[int, int, int, bytes]:
        """Tasks that are alike in it have one answer, where the weights are the same."""
        return self.number, self.slot, self.attempt, self.nonce


@dataclass(frozen=True)
class Reply:
    """Scalars of round `number` (steps, then blocks, then directions), mean loss, rows seen, digest of the weights before.

    `counts`: where the run says so (`RunSettings.counted`), examples of every local step that have directions of their own.
    `plan`: of a planned round (`protocol.planned`), its mark; `scalars` are the losses then.
    """

    number: int
    examples: int
    loss: float
    scalars: tuple[float, ...]
    digest: str | None = None
    slot: int = 0
    counts: tuple[int, ...] = ()
    plan: int = 0


@dataclass(frozen=True)
class SumMessage:
    """A message of a secure sum (sum_messages.py); with the first one of a client may come the digest of its weights."""

    body: bytes
    digest: str | None = None


@dataclass(frozen=True)
class Scores:
    number: int
    examples: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class CatchUp:
    """A request for the records from `position` on."""

    position: int


@dataclass(frozen=True)
class Records:
    """Encoded records from `first` on; `last`: nothing is missing after them. `snapshot`: where they begin, if not at `first`."""

    first: int
    count: int
    records: bytes
    last: bool = True
    snapshot: dict[str, Any] | None = None


@dataclass(frozen=True)
class Accepted:
    number: int


@dataclass(frozen=True)
class Refused:
    """`reason` is cut, and of characters that a terminal only prints, whoever wrote it."""

    code: Word
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", printable(self.code, 40))
        object.__setattr__(self, "reason", printable(self.reason, 1000))


Message = Hello | Welcome | Task | Reply | SumMessage | Scores | CatchUp | Records | Accepted | Refused
