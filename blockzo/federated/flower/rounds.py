"""Rounds of blockzo's Server over an `Exchange`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from blockzo.federated.flower.exchange import Arrival, Exchange, Peer
from blockzo.federated.protocol import messages as m
from blockzo.federated.server.open_round import RoundResult
from blockzo.federated.server.server import Server

log = logging.getLogger("flwr")

PULL_SECONDS = 0.1
LOOK_SECONDS = 1.0
INTRODUCE_SECONDS = 5.0
"""Seconds between two requests to a node to say who it is."""
AGAIN_SECONDS = 8.0
"""After which a node that did not answer is asked again what it holds at the end: under a bad network answers get lost."""


def _must_see(answer: bytes) -> bool:
    """Must the client see the server's answer? An acceptance and most refusals say nothing that it could act on."""
    kind = m.kind_of(answer)
    if kind == m.REFUSED:
        message = m.decode(answer)
        return isinstance(message, m.Refused) and message.code == m.DIVERGED
    return kind in (m.WELCOME, m.RECORDS)


class Rounds:
    """Drives a server until its last round.

    Args:
        clients: wait for so many before a round is opened, or for the quorum where it is larger.
    """

    def __init__(self, server: Server, exchange: Exchange, clients: int = 1) -> None:
        self.server, self.exchange = server, exchange
        self.wanted = max(clients, server.policy.quorum)
        self._looked = -1e9

    def run(self, report: Callable[[RoundResult], None] = lambda result: None) -> None:
        failures = 0
        while not self.server.finished:
            self._wait_for(lambda: len(self._available()) >= self.wanted)
            result = self._round()
            if result.record is None:
                failures += 1
                # a node that fails at once must not be asked all the time
                self._wait(min(2.0**failures, 30.0) / 2)
                continue
            failures = 0
            report(result)

    def _available(self) -> dict[str, Peer]:
        """Clients without an old question to answer; all of them where those are too few."""
        joined = self.exchange.joined()
        free = {name: peer for name, peer in joined.items() if not peer.sent}
        return free if len(free) >= self.wanted else joined

    def _round(self) -> RoundResult:
        available = self._available()
        for name, task in self.server.open_round(available, time.monotonic()).items():
            available[name].queue.append(task)
        asked = set(available)
        while not self.server.ready(time.monotonic()):
            self._step()
            for name, message in self.server.advance(time.monotonic()).items():
                available[name].queue.append(message)
            for name in asked - set(self.exchange.joined()):
                self.server.gone(name)
        return self.server.close_round()

    def synchronize(self, seconds: float) -> dict[str, Peer]:
        """Sends every client the records it lacks, and asks what it holds then; waits for so long at most.

        Who took part and is there is waited for, and asked again where an answer got lost.
        """
        asked: dict[int, float] = {}
        end = time.monotonic() + seconds
        for peer in self.exchange.peers.values():
            peer.about = {}
        while True:
            there = [peer for peer in self.exchange.peers.values() if peer.node in self.exchange.online]
            due = [
                peer
                for peer in there
                if peer.name in self.server.positions
                and not (peer.joined and peer.about.get("position") == self.server.number)
            ]
            now = time.monotonic()
            if not due or now > end:
                return self.exchange.joined()
            for peer in due:
                if now - asked.get(peer.node, -1e9) > AGAIN_SECONDS:
                    asked[peer.node] = now
                    self._bring_up_to_date(peer, now)
            self._step()

    def _bring_up_to_date(self, peer: Peer, now: float) -> None:
        if not peer.joined or peer.name is None:
            self.exchange.introduce(peer, now)
            return
        due = self.server.bring_up_to_date([peer.name])
        peer.queue = [*due.values(), b""]

    def scores(self, seconds: float) -> tuple[int, float, float] | None:
        """Rows, loss and accuracy of the present weights on all clients' held-out rows; None where nobody answered in time."""
        peers = self.exchange.joined()
        for name, task in self.server.ask_scores(peers).items():
            peers[name].queue.append(task)
        end = time.monotonic() + seconds
        while time.monotonic() < end and set(peers) & set(self.exchange.joined()) - set(self.server.scores):
            self._step()
        found = list(self.server.scores.values())
        rows = sum(one.examples for one in found)
        if not rows:
            return None
        loss = sum(one.examples * one.loss for one in found) / rows
        return rows, loss, sum(one.examples * one.accuracy for one in found) / rows

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        said = time.monotonic()
        while not condition():
            self._step()
            if time.monotonic() - said > 30:
                said = time.monotonic()
                log.info(
                    "%d of %d clients are there: %s", len(self._available()), self.wanted, sorted(self._available())
                )

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._step()

    def _step(self) -> None:
        """Looks for nodes now and then, sends what is due, takes what came; then a short rest if nothing did."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self.exchange.look()
            for peer in self.exchange.peers.values():
                waits = now - peer.introduced_at > self.exchange.ttl or not (peer.sent or peer.queue)
                if not peer.joined and waits and now - peer.introduced_at > INTRODUCE_SECONDS:
                    self.exchange.introduce(peer, now)
        self.exchange.push(now)
        arrivals = self.exchange.pull(now)
        for arrival in arrivals:
            self._take(arrival, now)
        if not arrivals:
            time.sleep(PULL_SECONDS)

    def _take(self, arrival: Arrival, now: float) -> None:
        peer = arrival.peer
        if arrival.error is not None:
            log.warning("%s: %s", peer.name or f"node {peer.node}", arrival.error)
            # its worker may have been started anew: it is asked who it is before it is asked for work
            peer.joined = False
            if peer.name:
                self.server.gone(peer.name)
            return
        if peer.name is None:
            log.warning("node %d did not introduce itself", peer.node)
            return
        asked: set[int] = set()
        for message in arrival.messages:
            kind = m.kind_of(message)
            # few bytes that ask for many: once an envelope
            if message and not (kind in asked and kind in m.ASKING):
                self._receive(peer, peer.name, message, now)
            asked.add(kind)

    def _receive(self, peer: Peer, name: str, message: bytes, now: float) -> None:
        known = self.exchange.joined().get(name)
        if known is not None and known is not peer:
            log.warning("two nodes say that they are %s; the later one is not heard", name)
            return
        answer = self.server.receive(name, message, now)
        if m.kind_of(answer) == m.WELCOME:
            if not peer.joined:
                log.info("%s joined at record %d", name, self.server.positions[name])
            else:
                return  # a hello after a catch-up: it knows the run
            peer.joined = True
        if m.kind_of(message) == m.REFUSED:
            peer.joined = False
        if _must_see(answer):
            peer.queue.append(answer)
