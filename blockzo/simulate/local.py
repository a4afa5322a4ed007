"""Rounds in one process: the transport of simulations and tests. Messages are the bytes that would travel, and are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from blockzo.federated.client.client import Client
from blockzo.federated.server.hooks import Hooks
from blockzo.federated.server.open_round import RoundResult
from blockzo.federated.server.server import Server

Deliver = Callable[[str, bytes], bytes | None]
"""(client, its answer) -> what reaches the server; None: lost or late."""


class LocalTransport:
    """Carries messages between one server and its clients.

    Attributes: `up`, `down`: bytes so far by client.
    """

    def __init__(self, server: Server, clients: Mapping[str, Client]) -> None:
        self.server, self.clients = server, dict(clients)
        self.up: Counter[str] = Counter()
        self.down: Counter[str] = Counter()

    def join(self, names: Iterable[str] | None = None) -> None:
        """Introduces clients to the server, all where None."""
        for name in self.clients if names is None else names:
            self._talk(name, self.clients[name].hello())

    def round(
        self, available: Iterable[str] | None = None, now: float = 0.0, deliver: Deliver = lambda name, data: data
    ) -> RoundResult:
        """One attempt at a round with whoever is available; who does not answer is taken as gone."""
        messages = self.server.open_round(self.clients if available is None else available, now)
        while messages:
            for name, message in messages.items():
                self.down[name] += len(message)
                sent = self.clients[name].handle(message)
                answer = deliver(name, sent)
                if answer is None:
                    self.up[name] += len(sent)
                    self.server.gone(name)
                    continue
                self._talk(name, answer, now)
            messages = self.server.advance(now, over=True)
        return self.server.close_round()

    def run(self, hooks: Hooks | None = None) -> list[dict[str, float]]:
        """All rounds that are left, with everyone who is there; then brings all clients to the last one.

        Returns:
            What `hooks.evaluate_fn` gave: before the first round, and after each.
        """
        hooks = hooks or Hooks()
        found = [hooks.begin(self.server)]
        while not self.server.finished:
            result = self.round()
            if result.record is not None:
                found.append(hooks.round_ended(self.server, result))
        self.synchronize()
        return found

    def synchronize(self) -> None:
        """Brings every client to the last round; a server that was restarted is told first what they hold."""
        self.join(sorted(set(self.clients) - set(self.server.positions)))
        for name, message in self.server.bring_up_to_date().items():
            self.down[name] += len(message)
            self._talk(name, self.clients[name].handle(message))

    def scores(self, names: Iterable[str]) -> None:
        """Asks clients for their held-out scores; they are in `server.scores`."""
        for name, task in self.server.ask_scores(names).items():
            self.down[name] += len(task)
            self._talk(name, self.clients[name].handle(task))

    def _talk(self, name: str, answer: bytes, now: float = 0.0) -> None:
        while answer:
            self.up[name] += len(answer)
            back = self.server.receive(name, answer, now)
            self.down[name] += len(back)
            answer = self.clients[name].handle(back)
