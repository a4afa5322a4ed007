"""The server of a federated run as a state machine: messages in, messages out, and a journal that is the truth.

It holds no weights and needs no torch. A round counts when its record is on disk; what is not in the journal did not happen, so a
server that is killed at any moment goes on from its journal, and asks again for a round that it had not closed.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from blockzo.contract import CONTRACT
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol import snapshots
from blockzo.federated.protocol.digests import layout_digest
from blockzo.federated.protocol.round_record import problem_of, round_record
from blockzo.federated.protocol.seeds import chosen
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings, run_tag
from blockzo.federated.server.history import History
from blockzo.federated.server.open_round import OpenRound, RoundResult
from blockzo.federated.server.preconditions import check_run
from blockzo.federated.server.right_weights import Replica, RightWeights
from blockzo.federated.sums import MOST_CLIENTS
from blockzo.journal.file import Journal, JournalError

log = logging.getLogger("blockzo.federated")


class Server:
    """Runs rounds with whoever is there.

    The transport calls `receive` for every message, and in turn `open_round`, then `advance` (which has messages to send in runs
    with secure sums) and `ready` until it is true, and `close_round`. A client's name comes from the transport, which vouches
    for it (a registered key, a partition).

    Attributes: `refusals`, counts by (client, code), with the client "(unknown)" for a sum that cannot be; `positions`, records
    that each client is known to hold; `diverged`, clients whose weights are not those of the run, until they begin again;
    `scores`, answers to `ask_scores`.
    """

    def __init__(
        self, settings: RunSettings, journal: Journal, policy: RoundPolicy | None = None, replica: Replica | None = None
    ) -> None:
        if journal.base_digest is None:
            raise JournalError(
                "a federated run needs the digest of its base weights; create the journal with base_digest"
            )
        self.settings, self.policy = settings, policy or RoundPolicy()
        check_run(settings, self.policy)
        self.history = History(settings, journal, self.policy)
        self.private = settings.private
        self._sampled = self.private is not None and self.private.sampling_rate < 1
        # who is in a round must not depend on who answered: that depends on data
        self._fixed = self.private is not None and self.private.mode == "central" and not settings.secure_sum
        self.base_digest: str = journal.metadata.get("base_digest", journal.base_digest)
        self.tag = run_tag(settings, self.base_digest, journal.layout)
        self.positions: dict[str, int] = {}
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.scores: dict[str, m.Scores] = {}
        self.diverged: set[str] = set()
        self.right = RightWeights(self.history, replica)
        self._layout_digest = layout_digest(journal.layout)
        self._round: OpenRound | None = None
        self._attempt = 0
        self._messages: Counter[str] = Counter()
        self._asked_scores: set[str] = set()
        self._compaction_due = False
        if replica is not None:
            if self.history.snapshot is not None:
                replica.reset(self.history.snapshot)
            elif (found := replica.digest()) != journal.base_digest:
                raise ValueError(
                    f"the replica's weights are {found}, the run begins at {journal.base_digest}; load the base model"
                )
            replica.begin(settings)
            replica.replay(journal.records())
        elif self.policy.snapshot_every:
            raise ValueError("snapshot_every needs the weights on the server; pass replica")

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        settings: RunSettings,
        base_digest: str,
        layout: Mapping[str, int],
        policy: RoundPolicy | None = None,
        replica: Replica | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Server:
        """A new run.

        Args:
            base_digest, layout: as `blockzo.digest(model)` and `blocks.layout` give them.
            metadata: more for the journal's header.
        """
        check_run(settings, policy or RoundPolicy())
        left = snapshots.any_beside(Path(path))
        if left is not None and not Path(path).exists():
            raise JournalError(f"{left} belongs to an earlier run of this name; remove it, or choose another name")
        facts = {**(metadata or {}), "federated": settings.as_dict(), "base_digest": base_digest}
        # a plain replay of a pool's records lacks its roundings
        journal = Journal.create(path, base_digest, layout, facts, exact=not settings.pool)
        return cls(settings, journal, policy, replica)

    @classmethod
    def resume(
        cls, path: str | os.PathLike[str], policy: RoundPolicy | None = None, replica: Replica | None = None
    ) -> Server:
        """The run whose journal lies at `path`, after the server was stopped or killed."""
        journal = Journal.resume(path)
        try:
            settings = RunSettings.from_dict(journal.metadata.get("federated", {}))
        except ValueError as error:
            journal.close()
            raise JournalError(f"{path} is not the journal of a federated run: {error}") from None
        return cls(settings, journal, policy, replica)

    @property
    def journal(self) -> Journal:
        return self.history.journal

    @property
    def replica(self) -> Replica | None:
        return self.right.replica

    @replica.setter
    def replica(self, replica: Replica | None) -> None:
        self.right.replica = replica

    @property
    def number(self) -> int:
        """Of the next round: rounds in the journal."""
        return self.history.number

    @property
    def attempt(self) -> int:
        """At the next round: how often it lacked a quorum."""
        return self._attempt

    @property
    def phase(self) -> int:
        """Of the open round's secure sum, from 0; 0 in runs without."""
        return 0 if self._round is None or self._round.sum is None else self._round.sum.phase

    @property
    def finished(self) -> bool:
        return self.number >= self.settings.rounds

    # rounds

    def open_round(self, available: Iterable[str], now: float) -> dict[str, bytes]:
        """Chooses participants among those `available`: name -> message for it. Repeated for a round that lacked a quorum."""
        names = set(available)
        run = bytes.fromhex(self.settings.run)
        current = self._round
        if current is None or current.number != self.number:
            current = self._round = OpenRound(self.number, self._attempt, now)
            self._messages.clear()
            if self._sampled and self.private is not None:
                current.sample = self.private.sample(names)
        elif current.attempt != self._attempt:
            self._messages.clear()
        picked, here = current.sample, names
        if picked is None and self._fixed:
            # of all who ever came, and the same in every attempt; who is away counts as zeros
            picked = chosen(run, self.number, 0, sorted(names | set(self.positions)), self.policy.clients)
        elif picked is None:
            names = current.preferred(names, self.policy.clients or self.policy.quorum)
            most = self.policy.clients
            if self.settings.secure_sum and most is None:
                most = MOST_CLIENTS
            picked = chosen(run, self.number, self._attempt, sorted(names), most)
        current.attempt, current.began, current.silent = self._attempt, now, set()
        picked = current.seated(picked, self.settings)
        current.asked = set(picked)
        if self._fixed:
            current.silent = current.asked - here
            current.reached |= current.asked & here
        if self.settings.secure_sum:
            from blockzo.federated.secagg.round import SecureRound

            # of its own in every attempt: who asks again begins anew
            current.sum = SecureRound(self.settings, self.policy, self.tag, self.number, self._attempt, picked)
        due = [name for name in picked if name not in current.replies and not (self._fixed and name not in here)]
        return {name: self._task(name, current.slots[name]) for name in due}

    def ask_scores(self, names: Iterable[str]) -> dict[str, bytes]:
        """Messages that ask clients for the scores of the present weights on their held-out rows; see `scores`.

        Raises:
            ValueError: in a run with secure sums, where nothing of a single client is told.
        """
        if self.settings.secure_sum:
            raise ValueError(
                "held-out scores tell of one client, and this run has secure sums; score a replica on the server's own rows"
            )
        self.scores.clear()
        self._messages.clear()
        self._asked_scores = set(names := list(names))
        return {name: self._task(name, 0, evaluate=True) for name in names}

    def gone(self, name: str) -> None:
        """The transport knows that a client will not answer in this round."""
        if self._round is not None:
            self._round.silent.add(name)

    def ready(self, now: float) -> bool:
        """May the round be closed: everyone answered, or its time is over?"""
        current = self._open()
        return current.sum.over if current.sum is not None else self._complete(current, now)

    def _complete(self, current: OpenRound, now: float) -> bool:
        return not current.waiting() or now - current.began >= self.policy.deadline

    def advance(self, now: float, over: bool = False) -> dict[str, bytes]:
        """In a run with secure sums: name -> message, where everyone due in a phase answered or its time is over; else nothing.

        Args:
            over: the transport knows that nothing more will come in this phase.
        """
        current = self._open()
        found = current.sum
        if found is None or found.over or not (over or self._complete(current, now)):
            return {}
        if not found.phase:
            for name in self._outvoted(found.digests):
                found.withdraw(name)
        messages = found.advance()
        current.began, current.silent = now, set()
        return {name: m.encode(message, self.tag) for name, message in messages.items()}

    def close_round(self) -> RoundResult:
        """Combines the replies, and writes the record to disk before anything else learns of it.

        Raises:
            JournalError: the record cannot be written; the journal is as before and the round can be closed again.
        """
        current = self._open()
        if current.sum is not None:
            names, replies, blamed = current.sum.outcome()
            self.refusals.update((name, m.INVALID) for name in blamed)
            # for the next attempt alone, or a round could wait for ever for those who are not among them
            current.spent, current.blamed = current.sum.spent, set(blamed)
            if not names and self.private is not None and self._given_away(current):
                # clients add their values to one sum a round: this one counts, and moves nothing
                log.warning("round %d: no sum, and no second one with privacy; the weights stay", current.number)
                return self._closed(current, (), [m.Reply(current.number, 1, 0.0, (0.0,) * self.settings.scalars)])
        else:
            for name in self._outvoted({n: reply.digest for n, reply in current.replies.items()}):
                del current.replies[name]
            names = tuple(sorted(current.replies))
            replies = [current.replies[name] for name in names]
        result = RoundResult(current.number, current.attempt, len(current.asked), names, 0, math.nan, None)
        there = len(current.reached) if self._fixed else len(names)
        if there < self.policy.quorum and not self._sampled:
            what = "clients there" if self._fixed else "replies"
            log.warning("round %d: %d of %d %s, no quorum", current.number, there, self.policy.quorum, what)
            self._attempt += 1
            return result
        return self._closed(current, names, replies)

    def _given_away(self, current: OpenRound) -> bool:
        """May clients' values be in a sum of this round, so that no other one can be had?"""
        assert current.sum is not None
        left = len(current.asked - current.exhausted)
        return current.sum.phase >= 2 or bool(current.exhausted) and left < self.policy.quorum

    def _closed(self, current: OpenRound, names: tuple[str, ...], replies: list[m.Reply]) -> RoundResult:
        record, examples = current.made or round_record(self.settings, self.number, replies)
        if self.private is not None:
            # a second draw of the noise on the same sum, after a disk that was full, would spend privacy twice
            current.made = record, examples
        self.history.append(record)
        self._round, self._attempt = None, 0
        if self.replica is not None:
            self.replica.replay([record])
            if self.policy.snapshot_every and self.number % self.policy.snapshot_every == 0:
                self._compaction_due = True
            if self._compaction_due:
                self._compact(self.replica)
        loss, epsilon = record.losses[0], None
        if self.private is not None:
            loss, epsilon = math.nan, self.private.epsilon(self.number)
            log.info("round %d: epsilon %.4g at delta %g", current.number, epsilon, self.private.delta)
        return RoundResult(current.number, current.attempt, len(current.asked), names, examples, loss, record, epsilon)

    def _compact(self, replica: Replica) -> None:
        """The round counts whether this works or not; where not, it is tried again after the next."""
        try:
            self.history.compact(replica.digest(), replica.save)
            self._compaction_due = False
        except (OSError, JournalError) as error:
            log.error("no snapshot after round %d: %s; the journal is kept whole", self.number, error)

    def _open(self) -> OpenRound:
        if self._round is None:
            raise ValueError("no round is open; call open_round first")
        return self._round

    # messages

    def receive(self, name: str, data: bytes, now: float = 0.0) -> bytes:
        """The answer to one message of a client: welcome, records, acceptance, or a refusal with its reason."""
        self._messages[name] += 1
        beyond = self._messages[name] - self.policy.most_messages
        if beyond > 0:
            reason = f"more than {self.policy.most_messages} messages in a round"
            if beyond == 1:
                return self._refuse(name, m.UNWANTED, reason)
            # a flood costs no line of the log a message
            self.refusals[name, m.UNWANTED] += 1
            return m.encode(m.Refused(m.UNWANTED, reason), self.tag)
        if len(data) > max(self._largest_message(), 1024):
            return self._refuse(name, m.INVALID, f"a message of {len(data)} bytes is too large")
        try:
            message = m.decode(data, self.tag, self.settings)
        except m.MessageError as error:
            return self._refuse(name, m.INVALID, str(error))
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
                if name not in self._asked_scores or message.number != self.number:
                    return self._refuse(name, m.UNWANTED, f"scores of round {message.number} were not asked for")
                self.scores[name] = message
                return m.encode(m.Accepted(message.number), self.tag)
            case m.Refused():
                # its words go into the log as it wrote them, quoted and short
                log.warning("%s refused: %.300r (%.40r)", name, message.reason, message.code)
                self.refusals[name, message.code if message.code in m.CODES else m.INVALID] += 1
                if message.code == m.SPENT and self._round is not None:
                    self._round.exhausted.add(name)
                self.gone(name)
                return m.encode(m.Accepted(self.number), self.tag)
        return self._refuse(name, m.INVALID, f"a {type(message).__name__} comes from servers, not from clients")

    def _largest_message(self) -> int:
        if not self.settings.secure_sum:
            return m.reply_bytes(self.settings)
        return m.sum_bytes(self.settings, len(self._round.asked) if self._round is not None else 0)

    def _refuse(self, name: str, code: str, reason: str) -> bytes:
        if code == m.INVALID:
            # nothing better will come; should it come after all, it counts
            self.gone(name)
        self.refusals[name, code] += 1
        log.warning("refused %s: %s (%s)", name, reason, code)
        return m.encode(m.Refused(code, reason), self.tag)

    def _hello(self, name: str, hello: m.Hello) -> bytes:
        mine = {"contract": CONTRACT, "base_digest": self.base_digest, "layout_digest": self._layout_digest}
        for what, wanted in mine.items():
            found = getattr(hello, what)
            if found != wanted:
                return self._refuse(name, m.MISMATCH, f"{what} is {found[:80]}; the run has {wanted}")
        if hello.position > self.number:
            return self._ahead(name, hello.position)
        self.positions[name] = hello.position
        return m.encode(m.Welcome(self.settings.as_dict(), self.base_digest, self.number), self.tag)

    def _ahead(self, name: str, position: int) -> bytes:
        """A server that was restored from a copy knows fewer rounds than its clients; the journal is the truth."""
        self.diverged.add(name)
        return self._refuse(name, m.DIVERGED, f"{position} rounds are held, the run has {self.number}; begin again")

    def _task(self, name: str, slot: int, evaluate: bool = False) -> bytes:
        if name in self.diverged:
            told = m.Refused(m.DIVERGED, "your weights differ from those of the run; begin again at the base")
            return m.encode(told, self.tag)
        first = min(self.positions.get(name, self.number), self.number)
        records = self.history.suffix(first)
        # what does not fit into one message is asked for in pieces
        first, data = (self.number, b"") if records is None else (first, records)
        wanted = not evaluate and self.policy.wants_digest(self.number)
        task = m.Task(self.number, first, data, slot, wanted, evaluate)
        if self._round is not None and self._round.sum is not None:
            task = replace(task, attempt=self._round.attempt, nonce=self._round.sum.nonce)
        return m.encode(task, self.tag)

    def _catch_up(self, name: str, position: int) -> bytes:
        if position > self.number:
            return self._ahead(name, position)
        if position <= self.journal.start:
            # it begins again
            self.diverged.discard(name)
        message = self.history.catch_up(position)
        self.positions[name] = message.first
        return m.encode(message, self.tag)

    def _reply(self, name: str, reply: m.Reply) -> bytes:
        current = self._round
        if current is None or reply.number != current.number or current.made is not None:
            return self._refuse(
                name, m.STALE, f"a reply for round {reply.number}; the next to be closed is {self.number}"
            )
        if current.sum is not None:
            return self._refuse(name, m.INVALID, "scalars without a mask, in a run with secure sums")
        if name not in current.slots:
            return self._refuse(name, m.UNWANTED, f"round {reply.number} did not ask this client")
        before = current.replies.get(name)
        if before is not None:
            if before != reply:
                return self._refuse(name, m.UNWANTED, f"another reply for round {reply.number} was accepted already")
            return m.encode(m.Accepted(reply.number), self.tag)
        problem = problem_of(reply, current.slots[name], self.settings, self.policy)
        if problem is not None:
            return self._refuse(name, m.INVALID, problem)
        refused = self._wrong_digest(name, reply.number, reply.digest)
        if refused is not None:
            return refused
        current.replies[name] = reply
        self.positions[name] = reply.number
        return m.encode(m.Accepted(reply.number), self.tag)

    def _sum_message(self, name: str, message: m.SumMessage) -> bytes:
        current = self._round
        if current is None or current.sum is None:
            return self._refuse(name, m.STALE, "a message of a sum; none is open")
        found, number = current.sum, current.number
        problem = found.problem_of(name, message.body)
        if problem is not None:
            return self._refuse(name, *problem)
        if found.phase and message.digest is not None:
            return self._refuse(name, m.INVALID, "a digest that was not asked for")
        if not found.phase:
            refused = self._wrong_digest(name, number, message.digest)
            if refused is not None:
                return refused
        wrong = found.take(name, message.body)
        if wrong is not None:
            return self._refuse(name, m.INVALID, wrong)
        if not found.phase:
            found.digests[name] = message.digest
            self.positions[name] = number
        return m.encode(m.Accepted(number), self.tag)

    def _wrong_digest(self, name: str, number: int, digest: str | None) -> bytes | None:
        """The refusal that a digest deserves, or a missing one; None where it is right."""
        if not self.policy.wants_digest(number):
            return None if digest is None else self._refuse(name, m.INVALID, "a digest that was not asked for")
        wanted = self.right.digest(number, digest)
        return None if digest == wanted else self._diverged(name, number, digest, wanted)

    def _diverged(self, name: str, number: int, told: str | None, wanted: str | None) -> bytes:
        self.diverged.add(name)
        self.gone(name)
        if self._round is not None:
            if name in self._round.repaired:
                return self._refuse(
                    name, m.UNWANTED, "weights still differ after a repair; the round goes on without them"
                )
            self._round.repaired.add(name)
        reason = f"weights before round {number} are {told}, expected {wanted}"
        return self._refuse(name, m.DIVERGED, reason)

    def _outvoted(self, digests: Mapping[str, str | None]) -> list[str]:
        """Who is sent back to the base, since most clients of the round have other weights."""
        names, wanted = self.right.outvoted(self.number, digests)
        for name in names:
            self._diverged(name, self.number, digests[name], wanted)
        return names

    def close(self) -> None:
        self.journal.close()
