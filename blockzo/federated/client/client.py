"""A participant of a federated run as a state machine: messages in, messages out; its worker holds model and data.

State on disk, where a journal is given: the records that its weights hold. A client that is killed loads the base model again,
replays its own journal, and asks the server for what came since.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockzo.contract import CONTRACT
from blockzo.federated.client.held import HeldRounds
from blockzo.federated.client.policy import ClientPolicy, PolicyError
from blockzo.federated.privacy.releases import Releases, SpentRound
from blockzo.federated.privacy.settings import PrivacySettings
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.digests import layout_digest
from blockzo.federated.protocol.estimate import ClientWorker, Estimate
from blockzo.federated.protocol.settings import RunSettings, run_tag
from blockzo.federated.protocol.sum_messages import StaleSum
from blockzo.federated.signing import Signer, SignerError, check_signer
from blockzo.journal.file import Journal

if TYPE_CHECKING:
    from blockzo.federated.secagg.client import SecurePart

log = logging.getLogger("blockzo.federated")


class Client:
    """Answers a server's messages.

    The transport sends what `hello` gives, and then the answer of `handle` to every message, as long as it is not empty.

    Args:
        journal: path of the client's own journal; made where it does not exist.
        signer: long-term key and roster, for runs with secure sums; who has one takes part in signed sums alone.
        policy: what its owner takes part in; where None, any run of a bounded size, with privacy or without.
        snapshots: folder where weights of later rounds may be read, each a file DIGEST.safetensors; None: none are read.
    """

    def __init__(
        self,
        worker: ClientWorker,
        journal: Path | None = None,
        signer: Signer | None = None,
        snapshots: Path | None = None,
        policy: ClientPolicy | None = None,
    ) -> None:
        self.worker = worker
        self.settings: RunSettings | None = None
        self.tag = m.NO_TAG
        self._path, self._signer = journal, signer
        self.policy = policy or ClientPolicy()
        self._pending: m.Task | None = None
        self._answer: tuple[m.Task, bytes] | None = None
        self._releases: Releases | None = None
        self._secure: SecurePart | None = None
        self._held = HeldRounds(worker, journal, snapshots, self._forget)
        if journal is not None and journal.exists():
            self._restore(journal)

    def _restore(self, path: Path) -> None:
        journal = Journal.resume(path)
        self._take(RunSettings.from_dict(journal.metadata.get("federated", {})))
        self._held.restore(journal)

    def _forget(self) -> None:
        self._answer = None
        if self._secure is not None:
            self._secure.forget()

    @property
    def position(self) -> int:
        """Rounds that the weights hold."""
        return self._held.position

    @position.setter
    def position(self, position: int) -> None:
        self._held.position = position

    def hello(self) -> bytes:
        """The first message of a client that comes or comes back."""
        return m.encode(
            m.Hello(CONTRACT, self.worker.base_digest, layout_digest(self.worker.layout), self.position), m.NO_TAG
        )

    def handle(self, data: bytes) -> bytes:
        """The answer to one message of the server; empty where none is due.

        What is wrong with a message, or with this client, is answered as a refusal; it never leaves as an exception.
        """
        try:
            message = m.decode(data, self.tag, self.settings)
        except m.MessageError as error:
            if m.kind_of(data) in (m.ACCEPTED, m.REFUSED):
                # an answer to an answer would go on for ever
                return b""
            return self._refuse(m.INVALID, str(error))
        if self.settings is None and not isinstance(message, (m.Welcome, m.Refused, m.Accepted)):
            return self._refuse(m.MISMATCH, "this client was not welcomed to a run yet")
        try:
            match message:
                case m.Welcome():
                    return self._welcome(message)
                case m.Task():
                    return self._task(message)
                case m.Records():
                    return self._records(message)
                case m.SumMessage():
                    return self._in_sum(message)
                case m.Refused():
                    return self._refused(message, self.settings is not None and m.tag_of(data) == self.tag)
                case m.Accepted():
                    return b""
        except Exception as error:
            self._pending = None
            if isinstance(error, SpentRound):
                return self._refuse(m.SPENT, str(error))
            if isinstance(error, (ValueError, RuntimeError, OSError)):
                return self._refuse(m.INVALID, str(error))
            # words of other errors may tell of the data
            log.exception("this client failed")
            return self._refuse(m.INVALID, f"the client failed: {type(error).__name__}")
        return self._refuse(m.INVALID, f"a {type(message).__name__} comes from clients, not from servers")

    def _refuse(self, code: str, reason: str) -> bytes:
        log.warning("refused the server: %s (%s)", reason, code)
        return m.encode(m.Refused(code, reason), self.tag)

    def _take(self, settings: RunSettings) -> None:
        self.policy.check(settings)
        if settings.blocks != self.worker.blocks:
            raise ValueError(f"the run has {settings.blocks} blocks, this model {self.worker.blocks}; cut it alike")
        self.worker.begin(settings)
        tag = run_tag(settings, self.worker.base_digest, self.worker.layout)
        if settings.private is not None and settings.private.mode == "local":
            self._releases = Releases(None if self._path is None else self._path.with_suffix(".released"), tag)
        if settings.secure_sum:
            from blockzo.federated.secagg.client import SecurePart
            from blockzo.federated.secagg.crypto import need_cryptography

            need_cryptography()
            check_signer(self._signer, settings.signed_sum)
            path = None if self._path is None else self._path.with_suffix(".released")
            spent = None if settings.private is None else Releases(path, tag)
            self._secure = SecurePart(settings, tag, self._signer, spent)
        self._held.begin(settings)
        self.settings, self.tag = settings, tag

    def _welcome(self, welcome: m.Welcome) -> bytes:
        settings = RunSettings.from_dict(welcome.settings)
        if self.settings is not None and settings != self.settings:
            return self._refuse(m.MISMATCH, "the run's settings changed since this client joined it")
        if self.settings is None:
            try:
                self._take(settings)
            except (ImportError, SignerError, PolicyError) as error:
                # what is missing, and how to get it
                return self._refuse(m.MISMATCH, str(error))
        self._held.open_journal()
        return b""

    def _task(self, task: m.Task) -> bytes:
        if self._answer is not None and self._answer[0].what == task.what:
            # asked again, after a lost answer or a killed server; weights and directions are the same
            if not task.evaluate and self.position == task.number:
                return self._answer[1]
        if task.number < self.position:
            return self._refuse(m.STALE, f"round {task.number} is over here; this client holds {self.position} rounds")
        if task.first > self.position:
            self._pending = task
            return m.encode(m.CatchUp(self.position), self.tag)
        self._held.apply(task.first, task.number - task.first, task.records)
        return self._work(task)

    def _work(self, task: m.Task) -> bytes:
        assert self.settings is not None
        if bool(task.nonce) != bool(self.settings.secure_sum) or (task.nonce and task.evaluate):
            raise ValueError(
                f"a task {'for' if task.nonce else 'without'} a secure sum, evaluate={task.evaluate}, in a run with "
                f"secure_sum={self.settings.secure_sum}; where it is True nothing of this client alone is told"
            )
        private, releases = self.settings.private, self._releases
        if releases is not None:
            if task.evaluate or task.number >= self.settings.rounds:
                raise ValueError(
                    f"round {task.number}, evaluate={task.evaluate}: nothing leaves this client without noise, nor after "
                    f"{self.settings.rounds} rounds (privacy mode 'local')"
                )
            before = releases.before(task.number)
            if before is not None:
                return before
        if task.evaluate:
            if not self.policy.held_out:
                raise ValueError("this client tells no scores on held-out data (its policy)")
            examples, loss, accuracy = self.worker.scores()
            return m.encode(m.Scores(task.number, examples, loss, accuracy), self.tag)
        digest = self.worker.digest() if task.wants_digest else None
        if self._secure is not None:
            body = self._secure.begin(task, lambda: self._estimate(task))
            self._answer = (task, m.encode(m.SumMessage(body, digest), self.tag))
            return self._answer[1]
        found = self._estimate(task)
        if private is not None and private.mode == "local":
            found = replace(found, scalars=private.noisy(found.scalars))
        reply = m.Reply(
            task.number, found.examples, found.loss, found.scalars, digest, task.slot, found.counts, found.plan
        )
        answer = m.encode(reply, self.tag, self.settings)
        if releases is not None:
            releases.add(task.number, answer)
        self._answer = (task, answer)
        return self._answer[1]

    def _estimate(self, task: m.Task) -> Estimate:
        """With privacy always one, clipped, without loss and examples: that something is wrong with the data must not show."""
        assert self.settings is not None
        private = self.settings.private
        if private is None and self._secure is None:
            return self.worker.estimate(task.number, task.slot)
        try:
            found = self.worker.estimate(task.number, task.slot)
            return found if private is None else _clipped(found, private, self.settings.scalars)
        except Exception as error:
            # its words may tell of the data
            log.exception("the estimate of round %d failed", task.number)
            if private is None:
                raise RuntimeError(f"the estimate failed: {type(error).__name__}") from error
            return Estimate((0.0,) * self.settings.scalars, 0.0, 1)

    def _in_sum(self, message: m.SumMessage) -> bytes:
        if self._secure is None:
            return self._refuse(m.INVALID, "a message of a secure sum, in a run without")
        try:
            return m.encode(m.SumMessage(self._secure.answer(message.body)), self.tag)
        except StaleSum as error:
            return self._refuse(m.STALE, str(error))

    def _records(self, message: m.Records) -> bytes:
        if message.snapshot is not None and message.first > self.position:
            self._held.jump(message.snapshot, message.first)
        if message.first > self.position:
            return self._refuse(m.INVALID, f"records from {message.first} on leave a gap after {self.position}")
        self._held.apply(message.first, message.count, message.records)
        if not message.last:
            return m.encode(m.CatchUp(self.position), self.tag)
        task, self._pending = self._pending, None
        if task is None or self.position != task.number:
            # nothing to do, or the round that it was for is over
            return self.hello()
        return self._work(task)

    def _refused(self, message: m.Refused, of_this_run: bool) -> bytes:
        log.warning("the server refused: %s (%s)", message.reason, message.code)
        # another run's word on the weights is none on these
        if message.code == m.DIVERGED and of_this_run:
            # the round may still be open when the weights are right again; with noise of its own the client has no second answer
            self._pending = None if self._answer is None or self._releases is not None else self._answer[0]
            self._held.reset(None, 0)
            return m.encode(m.CatchUp(0), self.tag)
        return b""

    def close(self) -> None:
        self._held.close()


def _clipped(found: Estimate, private: PrivacySettings, scalars: int) -> Estimate:
    """What may be used of an estimate in a private run; with unit "example" the worker has clipped."""
    values = found.scalars
    if len(values) != scalars or not all(map(math.isfinite, values)):
        raise ValueError(f"{len(values)} scalars, or some that are not finite; expected {scalars} finite ones")
    if private.unit == "client":
        values = private.mean_of([values], scalars)
    return Estimate(values, 0.0, 1)
