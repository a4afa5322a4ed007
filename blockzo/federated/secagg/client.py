"""A client's part in the secure sums of a run. Its secrets are in memory alone: who is killed is out of the sum."""

from __future__ import annotations

from collections.abc import Callable

from blockzo.federated.privacy.releases import Releases, SpentRound
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.estimate import Estimate
from blockzo.federated.protocol.settings import RunSettings
from blockzo.federated.protocol.sum_messages import StaleSum
from blockzo.federated.secagg.sum_client import SumClient
from blockzo.federated.secagg.values import encoded, length_of
from blockzo.federated.signing import Signer


class SecurePart:
    """Args:
    signer: in a run whose sums are signed.
    spent: in a run with privacy: the rounds in whose sums this client's integers may be already.

    `begin` with every task, then `answer` to what the server sends in that sum.

    Every sum has keys and masks of its own, also where a round is tried again. What was found on the data is kept for the round.
    """

    def __init__(
        self, settings: RunSettings, tag: bytes, signer: Signer | None = None, spent: Releases | None = None
    ) -> None:
        self.settings, self.tag, self.signer, self._spent = settings, tag, signer, spent
        self._number: int | None = None
        self._values: list[int] = []
        self._sum: SumClient | None = None

    def forget(self) -> None:
        """What was found no longer holds: the weights are others."""
        self._number, self._values, self._sum = None, [], None

    def begin(self, task: m.Task, estimate: Callable[[], Estimate]) -> bytes:
        """The first message in the sum that a task names; the sum before it cannot be gone on with.

        Raises:
            ValueError: nothing was found that could be added.
        """
        self._sum = None
        self._check_unspent(task.number)
        if self._number != task.number:
            self.forget()
            self._values = encoded(estimate(), self.settings)
            self._number = task.number
        session = s.session_of(self.tag, task.number, task.attempt, task.nonce)
        address = s.address_of(self.tag, task.number, task.attempt)
        private = self.settings.private
        least = 2 if private is None else private.survivors
        self._sum = SumClient(session, length_of(self.settings), self.signer, address, least)
        return self._sum.advertise()

    def answer(self, body: bytes) -> bytes:
        """The client's next message; each request is answered once.

        Raises:
            StaleSum: of another sum or phase; nothing changed.
            SumError: this client will not go on with the sum.
        """
        s.check_form(body[0])
        current = self._sum
        if current is None or body[1 : 1 + s.SESSION] != current.session:
            raise StaleSum("a message of a sum that this client is not in, or no longer")
        if body[0] != {1: s.ROSTER, 2: s.DELIVERY, 3: s.SURVIVORS}[current.stage]:
            raise StaleSum(f"message {body[0]} of a sum in which this client gave {current.stage}; each is given once")
        # what fails half-way is not gone on with, and the last one ends it
        self._sum = None
        if current.stage == 3:
            return current.unmask(body)
        if current.stage == 1:
            answer = current.share(body)
        else:
            assert self._number is not None
            self._check_unspent(self._number)
            answer = current.mask(body, self._values)
            if self._spent is not None:
                self._spent.add(self._number, b"in a sum")
        self._sum = current
        return answer

    def _check_unspent(self, number: int) -> None:
        """With privacy a client's integers are in one sum a round, whatever became of it: two would cost twice.

        Raises:
            SpentRound: they may be in one already.
        """
        if self._spent is None:
            return
        if number >= self.settings.rounds:
            raise SpentRound(f"round {number} of {self.settings.rounds}: nothing is added after the last")
        try:
            before = self._spent.before(number)
        except ValueError as error:
            raise SpentRound(str(error)) from None
        if before is not None:
            raise SpentRound(
                f"this client is in a sum of round {number} already; another would spend its privacy twice"
            )
