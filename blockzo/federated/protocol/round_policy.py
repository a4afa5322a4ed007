"""How the server runs rounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RoundPolicy:
    """How the server runs rounds; clients need not know.

    Attributes:
        clients: asked in a round; all that are there where None.
        quorum: replies without which a round does not count and is tried again. With central noise instead: clients that must be
            there when the round is opened; it counts then, whoever answers.
        deadline: seconds after which a round ends with the replies that are there; with secure sums each of its four phases.
        digest_every: rounds between digests that clients send of their weights; 0: never.
        largest_loss_change: a scalar that means a larger change of the loss than this, in nats, is refused.
        most_examples: that one client may claim; it bounds its weight in the mean.
        most_bytes: of records in one message to a client (one record always goes). What comes in may be as large as a reply.
        most_messages: of one client in a round.
        snapshot_every: rounds between snapshots beside the journal, which is then cut; 0: the journal keeps every round.
        roster: file with the public keys of the clients of signed secure sums (blockzo.federated.signing), where the server shall
            refuse others by name; None: the clients do it.
    """

    clients: int | None = None
    quorum: int = 1
    deadline: float = 60.0
    digest_every: int = 1
    largest_loss_change: float = 20.0
    most_examples: int = 1 << 20
    most_bytes: int = 1 << 24
    most_messages: int = 64
    snapshot_every: int = 0
    roster: str | None = None

    def __post_init__(self) -> None:
        if self.quorum < 1 or (self.clients is not None and self.clients < self.quorum):
            raise ValueError(f"quorum is {self.quorum} of {self.clients} clients; expected 1 <= quorum <= clients")
        if not self.deadline > 0 or self.digest_every < 0 or not self.largest_loss_change > 0:
            raise ValueError(
                f"deadline is {self.deadline}, digest_every {self.digest_every}, largest_loss_change "
                f"{self.largest_loss_change}; expected positive numbers (digest_every: 0 or more)"
            )
        if self.snapshot_every < 0:
            raise ValueError(f"snapshot_every is {self.snapshot_every}; expected 0 or more rounds")
        if self.most_examples < 1 or self.most_bytes < 1024 or self.most_messages < 4:
            raise ValueError("most_examples, most_bytes and most_messages must be at least 1, 1024 and 4")

    def wants_digest(self, number: int) -> bool:
        return self.digest_every > 0 and number % self.digest_every == 0
