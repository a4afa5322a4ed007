"""Messages to and from nodes over the public calls of Flower's Grid, without its waits of seconds."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from blockzo.federated.flower import envelope
from blockzo.federated.flower.identity import Identities
from blockzo.journal.outside import read_json

log = logging.getLogger("flwr")


@dataclass
class Peer:
    """A node as the server sees it.

    Attributes: `queue`, messages that go with the next push; `sent`, pushed and unanswered: Flower's message -> time of its push;
    `joined`, welcomed by the server; `introduced_at`, when it was last asked for its hello; `about`, what it said of itself.
    """

    node: int
    name: str | None = None
    queue: list[bytes] = field(default_factory=list)
    sent: dict[str, float] = field(default_factory=dict)
    joined: bool = False
    introduced_at: float = -1e9
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrival:
    """What came back from a node: messages, or the text of an error."""

    peer: Peer
    messages: tuple[bytes, ...] = ()
    error: str | None = None


class Exchange:
    """Pushes queues, pulls answers. Nodes are asked who they are when they are first seen.

    Args:
        run: of the federated run; the group of every message, so that a node finds its journal.
        ttl: seconds after which an answer is no longer waited for.

    Attributes: `peers` by node; `online`, nodes that Flower takes for reachable; `up`, `down`: payload bytes by client.
    """

    def __init__(self, grid: Grid, run: str, identities: Identities, ttl: float) -> None:
        self.grid, self.run, self.identities, self.ttl = grid, run, identities, ttl
        self.peers: dict[int, Peer] = {}
        self.online: set[int] = set()
        self.up: Counter[str] = Counter()
        self.down: Counter[str] = Counter()
        self.messages = 0

    def look(self) -> None:
        """Which nodes are there now?"""
        nodes = {node.node_id: node for node in self.grid.get_nodes()}
        self.online = set(nodes)
        for number, node in nodes.items():
            if number not in self.peers:
                self.peers[number] = Peer(number, self.identities.registered(node))

    def introduce(self, peer: Peer, now: float) -> None:
        peer.joined, peer.introduced_at = False, now
        peer.queue = [envelope.INTRODUCE]

    def joined(self) -> dict[str, Peer]:
        """Clients that can be asked, by name."""
        return {p.name: p for p in self.peers.values() if p.joined and p.name and p.node in self.online}

    def push(self, now: float) -> None:
        """Sends every queue as one message."""
        peers = [peer for peer in self.peers.values() if peer.queue and peer.node in self.online]
        for peer in peers:
            data = envelope.pack(peer.queue)
            content = RecordDict({envelope.KEY: ConfigRecord({envelope.KEY: data})})
            message = Message(content, peer.node, "query", ttl=self.ttl, group_id=self.run)
            found = list(self.grid.push_messages([message]))
            if not found or not found[0]:
                log.warning("node %d takes no message; it is tried again", peer.node)
                continue
            peer.queue = []
            peer.sent[found[0]] = now
            self.messages += 1
            self.down[peer.name or ""] += len(data)

    def pull(self, now: float) -> list[Arrival]:
        """Answers that are there; in the order of the nodes, whatever order they came in."""
        peer_of = {number: peer for peer in self.peers.values() for number in peer.sent}
        if not peer_of:
            return []
        arrivals = []
        for message in self.grid.pull_messages(list(peer_of)):
            number = message.metadata.reply_to_message_id
            peer = peer_of.get(number)
            if peer is None:
                continue
            peer.sent.pop(number, None)
            arrivals.append(self._arrival(peer, message))
        for peer in self.peers.values():
            for number in [n for n, at in peer.sent.items() if now - at > self.ttl]:
                del peer.sent[number]
                arrivals.append(Arrival(peer, error=f"no answer within {self.ttl:g} s"))
        return sorted(arrivals, key=lambda arrival: arrival.peer.node)

    def _arrival(self, peer: Peer, message: Message) -> Arrival:
        if message.has_error():
            return Arrival(peer, error=f"{message.error.reason} (code {message.error.code})")
        try:
            record = message.content[envelope.KEY]
            data = bytes(record[envelope.KEY])
            messages = tuple(envelope.unpack(data))
            if envelope.ABOUT in record:
                peer.about = dict(read_json(bytes(record[envelope.ABOUT]), "what the node tells of itself", 1 << 16))
                peer.name = peer.name or self.identities.reported(peer.about)
        except (KeyError, TypeError, ValueError) as error:
            return Arrival(peer, error=f"its answer does not make sense ({error})")
        self.up[peer.name or ""] += len(data)
        return Arrival(peer, messages)
