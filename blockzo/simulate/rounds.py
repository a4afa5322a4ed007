"""The rounds of a simulation: virtual clients on one set of weights, with the messages that real ones would exchange."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers

from blockzo.federated.client.client import Client
from blockzo.federated.client.finetuning import Batches, planner_of, run_settings
from blockzo.federated.client.policy import ClientPolicy, PolicyError
from blockzo.federated.client.worker import Weights, Worker
from blockzo.federated.protocol.seeds import chosen
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.federated.secagg.sum_client import threshold_of
from blockzo.federated.server.hooks import Hooks
from blockzo.federated.server.server import Server
from blockzo.federated.signing import new_signers
from blockzo.finetune import output
from blockzo.finetune.errors import UserError, about
from blockzo.finetune.facts import RunFacts
from blockzo.finetune.interrupt import Interrupts
from blockzo.finetune.metrics import HeldOutScores
from blockzo.finetune.models.identity import identity_of
from blockzo.finetune.prepare import Prepared
from blockzo.finetune.progress import Reporter
from blockzo.finetune.settings import Settings
from blockzo.journal.file import Journal, JournalError
from blockzo.ops import digest
from blockzo.optim.schedules import factor
from blockzo.simulate.clients import Liar, parts_digest, split
from blockzo.simulate.fedavg import FedAvg
from blockzo.simulate.lines import Lines
from blockzo.simulate.local import LocalTransport
from blockzo.simulate.settings import Federation

Ended = tuple[Lines, HeldOutScores, dict[str, Any]]
"""Lines, scores before, and facts for the summary."""


class Write(Protocol):
    """What becomes of a simulation that has ended: model, table, curve, summary."""

    def __call__(
        self,
        simulation: Simulation,
        lines: Sequence[Mapping[str, Any]],
        before: HeldOutScores,
        after: HeldOutScores,
        facts: Mapping[str, Any],
    ) -> dict[str, Any]: ...


class Simulation:
    """The parts of a simulation; `go` runs it."""

    def __init__(
        self,
        settings: Settings,
        federation: Federation,
        folder: Path,
        prepared: Prepared,
        reporter: Reporter,
        hooks: Hooks | None = None,
    ) -> None:
        self.settings, self.federation, self.folder = settings, federation, folder
        self.hooks = hooks or Hooks()
        self.prepared, self.reporter = prepared, reporter
        self.blocks = prepared.blocks(settings)
        # a copy of the base doubles the memory; only a pool goes back to it
        self.weights = Weights(self.blocks, base=None if federation.seed_pool else self._no_base)
        self.parts = split(prepared, federation, settings.seed)
        self.batches = [
            Batches(prepared, rows, settings, client, federation.local_steps, federation.logit_adjustment)
            for client, rows in enumerate(self.parts)
        ]
        self.policy = self._policy()
        with about("--policy"):
            self.asked = ClientPolicy() if federation.policy is None else ClientPolicy.load(Path(federation.policy))
        self._known: Mapping[str, Any] = {}
        self.run = hashlib.blake2s(f"simulate {settings.seed}".encode(), digest_size=16).hexdigest()
        self._began = time.monotonic()

    def _no_base(self) -> Mapping[str, torch.Tensor]:
        raise ValueError("a virtual client cannot begin again at the base: all share the weights of the simulation")

    def _policy(self) -> RoundPolicy:
        sample = self.federation.sample
        if not self.federation.secure_sum:
            return RoundPolicy(clients=sample, digest_every=0)
        asked = min(sample or len(self.parts), len(self.parts))
        if asked < 2:
            raise UserError(f"--secure-sum with {asked} client a round; a sum hides 2 or more")
        return RoundPolicy(clients=asked, quorum=threshold_of(asked), digest_every=0)

    def run_settings(self) -> RunSettings:
        federation = self.federation
        with about("--local-steps") if federation.local_steps > 1 else nullcontext():
            return self._run_settings(federation)

    def _run_settings(self, federation: Federation) -> RunSettings:
        return run_settings(
            self.settings,
            len(self.blocks),
            self.run,
            self.settings.steps,
            planner=self._planned(),
            local_steps=federation.local_steps,
            own_directions=federation.own_directions,
            aggregate=federation.aggregate,
            trim=federation.trim,
            weighting=federation.weighting,
            pool=federation.seed_pool,
            privacy=federation.private(len(self.parts)),
            secure_sum=federation.secure_sum,
            aggregate_options=federation.combining.options(),
        )

    def _planned(self) -> tuple[Mapping[str, Any], Sequence[bool]] | None:
        """What a planner is told: measured once, and what the journal says where a simulation goes on."""
        loss_fn = self.prepared.scorer.loss
        found = planner_of(self.settings, self.blocks, loss_fn, lambda: self.batches[0](0, 0)[0], self._known)
        if found is not None:
            self._known = found[0]
        return found

    def go(self, journal: Journal | None, write: Write) -> dict[str, Any]:
        """All rounds that are left; then `write` has the result, and nothing interrupts it but a second signal."""
        with Interrupts() as interrupts:
            try:
                if self.federation.engine == "fedavg":
                    lines, before, facts = self._first_order(interrupts)
                else:
                    lines, before, facts = self._zeroth_order(journal, interrupts)
                after = lines.scores()
                with interrupts.at_once():
                    return write(self, lines.metrics.lines, before, after, facts)
            finally:
                self.reporter.stop()

    def _lines(self, interrupts: Interrupts, steps: int) -> Lines:
        metrics = output.Metrics(self.folder / output.METRICS, steps)
        return Lines(self.settings, self.prepared, self.reporter, interrupts, metrics, self._began)

    def _zeroth_order(self, journal: Journal | None, interrupts: Interrupts) -> Ended:
        path = self.folder / output.JOURNAL
        if journal is not None:
            self._known = journal.metadata.get("federated", {}).get("method", {})
        self._ask(self.run_settings())
        if journal is None:
            told = {"settings": self.settings.as_dict(), "federation": self.federation.as_dict()}
            facts = {
                "simulation": told,
                "source": self.prepared.loaded.source,
                "classes": len(self.prepared.task.words) if self.prepared.task else 0,
                "data": self.prepared.data_facts(),
                "identity": identity_of(self.prepared.loaded).as_dict(),
                "versions": {"transformers": transformers.__version__},
                "parts": parts_digest(self.parts),
            }
            base, layout = self.weights.base_digest, self.blocks.layout
            run = self.run_settings()
            output.make_folder(self.folder)
            server = Server.create(path, run, base, layout, self.policy, metadata=facts)
        else:
            self._check(journal)
            server = Server.resume(path, self.policy)
        lines = self._lines(interrupts, server.number)
        try:
            before = lines.begin()
            self.weights.begin(server.settings)
            self.weights.replay(server.journal.records())
            server.replica = self.weights
            transport = LocalTransport(server, self._clients())
            for client in transport.clients.values():
                client.position = server.number
            transport.join()
            lines.fill(server)
            self.hooks.begin(server)
            self.reporter.start(server.number, self.settings.steps)
            while not server.finished:
                interrupts.check()
                self._round(server, transport, lines)
            down = transport.down.total()
            transport.synchronize()
            down = transport.down.total() - down
            if not server.journal.finished:
                server.journal.finish(digest(self.prepared.model))
        finally:
            server.close()
            lines.metrics.close()
        refused = sum(server.refusals.values())
        facts = {"refused": refused, "final_digest": server.journal.final_digest}
        held = sum(client.position == server.number for client in transport.clients.values())
        return lines, before, {**facts, "up_to_date": held, "bytes_down_at_the_end": down}

    def _ask(self, run: RunSettings) -> None:
        """All clients have one policy: what one would refuse in its answer to the welcome ends the run before it begins."""
        try:
            self.asked.check(run)
        except PolicyError as error:
            file = self.federation.policy
            raise UserError(
                f"every client refuses this run: {error}. "
                + ("Ask for less of them" if file is None else f"Change the run, or what --policy {file} asks for")
            ) from None

    def _check(self, journal: Journal) -> None:
        if journal.base_digest != self.weights.base_digest:
            raise UserError(
                f"the model is not the one that the simulation began with: its digest is {self.weights.base_digest}, the "
                f"journal's {journal.base_digest}; give the base model with --model"
            )
        facts = RunFacts.of(journal)
        unchecked = facts.check_model(self.prepared.loaded)
        if unchecked is not None:
            self.reporter.warn(unchecked)
        facts.check_data(self.prepared.data_facts())
        if facts.parts not in (None, parts_digest(self.parts)):
            raise UserError(
                f"the clients have other rows than when the simulation began ({self.federation.partition}); give --partition "
                "and its data as they were"
            )

    def _clients(self) -> dict[str, Client]:
        liars = round(self.federation.liars * len(self.parts))
        workers: list[Worker] = []
        for number, batches in enumerate(self.batches):
            if number < liars:
                workers.append(Liar(self.weights, batches, number, self.policy.largest_loss_change))
            else:
                workers.append(Worker(self.weights, batches, self.prepared.scorer.loss))
        self.workers = workers
        names = [name_of(number) for number in range(len(workers))]
        signers = new_signers(names) if self.federation.secure_sum and len(names) > 1 else {}
        return {
            name: Client(worker, signer=signers.get(name), policy=self.asked)
            for name, worker in zip(names, workers, strict=True)
        }

    def _round(self, server: Server, transport: LocalTransport, lines: Lines) -> None:
        def deliver(name: str, answer: bytes) -> bytes | None:
            lines.interrupts.check()
            chance = random.Random(f"drop {self.settings.seed} {server.number} {server.attempt} {name}")
            lost = chance.random() < self.federation.drop
            # who drops out of a secure sum does so in any of its phases
            return (
                None if lost and server.phase >= (chance.randrange(4) if self.federation.secure_sum else 0) else answer
            )

        flops = sum(worker.flops for worker in self.workers)
        seconds = sum(worker.seconds for worker in self.workers)
        up, down, began = sum(transport.up.values()), sum(transport.down.values()), time.monotonic()
        before = server.refusals.total()
        try:
            while (result := transport.round(deliver=deliver)).record is None:
                lines.interrupts.check()
                if not result.participants and server.refusals.total() > before:
                    raise ValueError("answers were refused; the reasons are above (losses that are not finite?)")
        except JournalError:
            raise
        except ValueError as error:
            raise UserError(
                f"round {server.number + 1}: {error}. The journal holds the {server.number} rounds before it and is valid. Start "
                "again with a lower --lr or another --eps"
            ) from error
        spent = time.monotonic() - began
        forwards = sum(worker.seconds for worker in self.workers) - seconds
        lines.add(
            # with privacy no loss is released
            loss=None if math.isnan(result.loss) else result.loss,
            epsilon=result.epsilon,
            flops=sum(worker.flops for worker in self.workers) - flops,
            up=sum(transport.up.values()) - up,
            down=sum(transport.down.values()) - down,
            clients=len(result.participants),
            forwards=forwards,
            overhead=spent - forwards,
            metrics=self.hooks.round_ended(server, result),
        )

    def _first_order(self, interrupts: Interrupts) -> Ended:
        (lr,) = set(self.run_settings().lr) if len(set(self.run_settings().lr)) == 1 else (None,)
        if lr is None or self.settings.weight_decay:
            raise UserError("--engine fedavg has one learning rate and no decay; give one --lr, and no --weight-decay")
        output.make_folder(self.folder)
        lines = self._lines(interrupts, -1)
        try:
            before = lines.begin()
            loss_fn = self.prepared.scorer.loss
            averaging = FedAvg(self.weights, loss_fn, self.batches, self.federation.local_steps)
            names = [name_of(number) for number in range(len(self.parts))]
            self.reporter.start(0, self.settings.steps)
            for number in range(self.settings.steps):
                interrupts.check()
                picked = chosen(bytes.fromhex(self.run), number, 0, names, self.federation.sample)
                flops, began = averaging.flops, time.monotonic()
                rate = lr * factor(self.settings.schedule, number, self.settings.steps, self.settings.warmup)
                loss, _ = averaging.round(number, [names.index(name) for name in picked], rate)
                travelled = averaging.bytes_each_way * len(picked)
                lines.add(
                    loss=loss,
                    flops=averaging.flops - flops,
                    up=travelled,
                    down=travelled,
                    clients=len(picked),
                    forwards=time.monotonic() - began,
                    overhead=0.0,
                )
        finally:
            lines.metrics.close()
        return lines, before, {"refused": 0, "final_digest": digest(self.prepared.model)}


def name_of(number: int) -> str:
    return f"client-{number:05d}"
