"""What a server answers to the messages of clients."""

from __future__ import annotations

import logging
from collections import Counter

from blockzo.contract import CONTRACT
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.digests import layout_digest
from blockzo.federated.protocol.planned import problem_of_losses
from blockzo.federated.protocol.round_record import problem_of
from blockzo.federated.server.state import ServerState

log = logging.getLogger("blockzo.federated")


class Receiving:
    """Checks every message and takes what belongs into the open round.

    Attributes: `counts`, messages of a client in this round; `asked_scores`, who was asked for scores, and `scores`, what came.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.counts: Counter[str] = Counter()
        self.asked_scores: set[str] = set()
        self.scores: dict[str, m.Scores] = {}
        self._layout_digest = layout_digest(state.history.journal.layout)

    def receive(self, name: str, data: bytes) -> bytes:
        """The answer to one message of a client: welcome, records, acceptance, or a refusal with its reason."""
        self.counts[name] += 1
        beyond = self.counts[name] - self.state.policy.most_messages
        if beyond > 0:
            reason = f"more than {self.state.policy.most_messages} messages in a round"
            if beyond == 1:
                return self.state.refuse(name, m.UNWANTED, reason)
            # a flood costs no line of the log a message
            self.state.refusals[name, m.UNWANTED] += 1
            return m.encode(m.Refused(m.UNWANTED, reason), self.state.tag)
        if len(data) > max(self._largest_message(), 1024):
            return self.state.refuse(name, m.INVALID, f"a message of {len(data)} bytes is too large")
        try:
            message = m.decode(data, self.state.tag, self.state.settings)
        except m.MessageError as error:
            return self.state.refuse(name, m.INVALID, str(error))
        match message:
            case m.Hello():
                return self._hello(name, message)
            case m.CatchUp():
                return self._catch_up(name, message.position)
            case m.Reply():
                return self._reply(name, message)
            case m.SumMessage():
                return self._sum_message(name, message)
            case m.Scores():
                if name not in self.asked_scores or message.number != self.state.number:
                    return self.state.refuse(name, m.UNWANTED, f"scores of round {message.number} were not asked for")
                self.scores[name] = message
                return m.encode(m.Accepted(message.number), self.state.tag)
            case m.Refused():
                # its words go into the log as it wrote them, quoted and short
                log.warning("%s refused: %.300r (%.40r)", name, message.reason, message.code)
                self.state.refusals[name, message.code if message.code in m.CODES else m.INVALID] += 1
                if message.code == m.SPENT and self.state.open is not None:
                    self.state.open.exhausted.add(name)
                self.state.gone(name)
                return m.encode(m.Accepted(self.state.number), self.state.tag)
        return self.state.refuse(name, m.INVALID, f"a {type(message).__name__} comes from servers, not from clients")

    def _largest_message(self) -> int:
        if not self.state.settings.secure_sum:
            return m.reply_bytes(self.state.settings)
        return m.sum_bytes(self.state.settings, len(self.state.open.asked) if self.state.open is not None else 0)

    def _hello(self, name: str, hello: m.Hello) -> bytes:
        mine = {"contract": CONTRACT, "base_digest": self.state.base_digest, "layout_digest": self._layout_digest}
        for what, wanted in mine.items():
            found = getattr(hello, what)
            if found != wanted:
                return self.state.refuse(name, m.MISMATCH, f"{what} is {found[:80]}; the run has {wanted}")
        if hello.position > self.state.number:
            return self._ahead(name, hello.position)
        self.state.positions[name] = hello.position
        return m.encode(
            m.Welcome(self.state.settings.as_dict(), self.state.base_digest, self.state.number), self.state.tag
        )

    def _ahead(self, name: str, position: int) -> bytes:
        """A server that was restored from a copy knows fewer rounds than its clients; the journal is the truth."""
        self.state.diverged.add(name)
        return self.state.refuse(
            name, m.DIVERGED, f"{position} rounds are held, the run has {self.state.number}; begin again"
        )

    def _catch_up(self, name: str, position: int) -> bytes:
        if position > self.state.number:
            return self._ahead(name, position)
        if position <= self.state.history.journal.start:
            # it begins again
            self.state.diverged.discard(name)
        message = self.state.history.catch_up(position)
        self.state.positions[name] = message.first
        return m.encode(message, self.state.tag)

    def _reply(self, name: str, reply: m.Reply) -> bytes:
        current = self.state.open
        if current is None or reply.number != current.number or current.made is not None:
            return self.state.refuse(
                name, m.STALE, f"a reply for round {reply.number}; the next to be closed is {self.state.number}"
            )
        if current.sum is not None:
            return self.state.refuse(name, m.INVALID, "scalars without a mask, in a run with secure sums")
        if name not in current.slots:
            return self.state.refuse(name, m.UNWANTED, f"round {reply.number} did not ask this client")
        before = current.replies.get(name)
        if before is not None:
            if before != reply:
                return self.state.refuse(
                    name, m.UNWANTED, f"another reply for round {reply.number} was accepted already"
                )
            return m.encode(m.Accepted(reply.number), self.state.tag)
        settings, policy, planner = self.state.settings, self.state.policy, self.state.history.planner
        if planner is None:
            problem = problem_of(reply, current.slots[name], settings, policy)
        else:
            problem = problem_of_losses(reply, planner.plan(current.number), settings, policy)
        if problem is not None:
            return self.state.refuse(name, m.INVALID, problem)
        refused = self.state.wrong_digest(name, reply.number, reply.digest)
        if refused is not None:
            return refused
        current.replies[name] = reply
        self.state.positions[name] = reply.number
        return m.encode(m.Accepted(reply.number), self.state.tag)

    def _sum_message(self, name: str, message: m.SumMessage) -> bytes:
        current = self.state.open
        if current is None or current.sum is None:
            return self.state.refuse(name, m.STALE, "a message of a sum; none is open")
        found, number = current.sum, current.number
        problem = found.problem_of(name, message.body)
        if problem is not None:
            return self.state.refuse(name, *problem)
        if found.phase and message.digest is not None:
            return self.state.refuse(name, m.INVALID, "a digest that was not asked for")
        if not found.phase:
            refused = self.state.wrong_digest(name, number, message.digest)
            if refused is not None:
                return refused
        wrong = found.take(name, message.body)
        if wrong is not None:
            return self.state.refuse(name, m.INVALID, wrong)
        if not found.phase:
            found.digests[name] = message.digest
            self.state.positions[name] = number
        return m.encode(m.Accepted(number), self.state.tag)
