"""The server of a federated run as a state machine: messages in, messages out, and a journal that is the truth.

It holds no weights and needs no torch. A round counts when its record is on disk; what is not in the journal did not happen, so a
server that is killed at any moment goes on from its journal, and asks again for a round that it had not closed.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol import snapshots
from blockzo.federated.protocol.round_record import round_record
from blockzo.federated.protocol.seeds import chosen
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.federated.server.open_round import OpenRound, RoundResult
from blockzo.federated.server.preconditions import check_run
from blockzo.federated.server.receiving import Receiving
from blockzo.federated.server.right_weights import Replica
from blockzo.federated.server.state import ServerState
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
        policy = policy or RoundPolicy()
        check_run(settings, policy)
        self.settings, self.policy, self.private = settings, policy, settings.private
        self._sampled = self.private is not None and self.private.sampling_rate < 1
        # who is in a round must not depend on who answered: that depends on data
        self._fixed = self.private is not None and self.private.mode == "central" and not settings.secure_sum
        self._state = state = ServerState(settings, journal, policy, replica)
        self._receiving = Receiving(state)
        self.history, self.base_digest, self.tag = state.history, state.base_digest, state.tag
        self.positions, self.refusals, self.diverged = state.positions, state.refusals, state.diverged
        self.scores = self._receiving.scores
        self._attempt = 0
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
        return self._state.right.replica

    @replica.setter
    def replica(self, replica: Replica | None) -> None:
        self._state.right.replica = replica

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
        return 0 if self._state.open is None or self._state.open.sum is None else self._state.open.sum.phase

    @property
    def finished(self) -> bool:
        return self.number >= self.settings.rounds

    # rounds

    def open_round(self, available: Iterable[str], now: float) -> dict[str, bytes]:
        """Chooses participants among those `available`: name -> message for it. Repeated for a round that lacked a quorum."""
        names = set(available)
        run = bytes.fromhex(self.settings.run)
        current = self._state.open
        if current is None or current.number != self.number:
            current = self._state.open = OpenRound(self.number, self._attempt, now)
            self._receiving.counts.clear()
            if self._sampled and self.private is not None:
                current.sample = self.private.sample(names)
        elif current.attempt != self._attempt:
            self._receiving.counts.clear()
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
        self._receiving.counts.clear()
        self._receiving.asked_scores = set(names := list(names))
        return {name: self._task(name, 0, evaluate=True) for name in names}

    def bring_up_to_date(self, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """Messages that bring clients to the last round, whoever was not asked in it; their answers go to `receive` as ever.

        Args:
            names: of those meant; all who said hello to this process where None.

        Returns:
            name -> message, for who is known to lack records, or has other weights and begins again.
        """
        self._receiving.counts.clear()
        found = {}
        for name in sorted(self.positions if names is None else set(names)):
            position = self.positions.get(name, self.number)
            if name in self.diverged:
                found[name] = self._begin_again()
            elif position < self.number:
                found[name] = self._receiving.receive(name, m.encode(m.CatchUp(position), self.tag))
        return found

    def gone(self, name: str) -> None:
        """The transport knows that a client will not answer in this round."""
        self._state.gone(name)

    def ready(self, now: float) -> bool:
        """May the round be closed: everyone answered, or its time is over?"""
        current = self._open()
        return current.sum.over if current.sum is not None else current.complete(now, self.policy.deadline)

    def advance(self, now: float, over: bool = False) -> dict[str, bytes]:
        """In a run with secure sums: name -> message, where everyone due in a phase answered or its time is over; else nothing.

        Args:
            over: the transport knows that nothing more will come in this phase.
        """
        current = self._open()
        found = current.sum
        if found is None or found.over or not (over or current.complete(now, self.policy.deadline)):
            return {}
        if not found.phase:
            for name in self._state.outvoted(found.digests):
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
            if not names and self.private is not None and current.given_away(self.policy.quorum):
                # clients add their values to one sum a round: this one counts, and moves nothing
                log.warning("round %d: no sum, and no second one with privacy; the weights stay", current.number)
                return self._closed(current, (), [m.Reply(current.number, 1, 0.0, (0.0,) * self.settings.scalars)])
        else:
            for name in self._state.outvoted({n: reply.digest for n, reply in current.replies.items()}):
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

    def _closed(self, current: OpenRound, names: tuple[str, ...], replies: list[m.Reply]) -> RoundResult:
        planner = self.history.planner
        record, examples = current.made or (
            round_record(self.settings, self.number, replies)
            if planner is None
            else planner.record(self.number, replies)
        )
        if self.private is not None:
            # a second draw of the noise on the same sum, after a disk that was full, would spend privacy twice
            current.made = record, examples
        self.history.append(record)
        self._state.open, self._attempt = None, 0
        if self.replica is not None:
            self.replica.replay([record])
            if self.policy.snapshot_every and self.number % self.policy.snapshot_every == 0:
                self._compaction_due = True
            if self._compaction_due:
                self._compact(self.replica)
        loss, epsilon = math.fsum(record.losses) / len(record.losses), None
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
        if self._state.open is None:
            raise ValueError("no round is open; call open_round first")
        return self._state.open

    # messages

    def receive(self, name: str, data: bytes, now: float = 0.0) -> bytes:
        """The answer to one message of a client: welcome, records, acceptance, or a refusal with its reason."""
        return self._receiving.receive(name, data)

    def _task(self, name: str, slot: int, evaluate: bool = False) -> bytes:
        if name in self.diverged:
            return self._begin_again()
        first = min(self.positions.get(name, self.number), self.number)
        records = self.history.suffix(first)
        # what does not fit into one message is asked for in pieces
        first, data = (self.number, b"") if records is None else (first, records)
        wanted = not evaluate and self.policy.wants_digest(self.number)
        task = m.Task(self.number, first, data, slot, wanted, evaluate)
        if self._state.open is not None and self._state.open.sum is not None:
            task = replace(task, attempt=self._state.open.attempt, nonce=self._state.open.sum.nonce)
        return m.encode(task, self.tag)

    def _begin_again(self) -> bytes:
        told = m.Refused(m.DIVERGED, "your weights differ from those of the run; begin again at the base")
        return m.encode(told, self.tag)

    def close(self) -> None:
        self.journal.close()
