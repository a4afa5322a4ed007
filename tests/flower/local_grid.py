"""A Grid in one process: the server's loop and Flower's own messages, with clients that answer at once or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from blockzo.federated.client.client import Client
from blockzo.federated.flower import envelope
from blockzo.federated.flower.worker_process import Resident


class LocalGrid(Grid):
    """Nodes with a client each.

    Attributes: `silent`, nodes that take messages and never answer; `failing`, whose ClientApp raises; `offline`, silent and not
    listed; `names`, under which they are registered; `pushed`, messages so far.
    """

    def __init__(self, clients: dict[int, Client], names: dict[int, str] | None = None) -> None:
        # Flower's messages carry the identity of the process that makes them
        if TaskIdentity._run_id is None:
            TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.residents = {node: Resident(client, f"client-{node}", b"") for node, client in clients.items()}
        self.names = names if names is not None else {node: f"client-{node}" for node in clients}
        self.silent: set[int] = set()
        self.failing: set[int] = set()
        self.offline: set[int] = set()
        self.pushed: list[tuple[int, list[bytes]]] = []
        self._answers: dict[str, Message] = {}
        self._numbers = count(1)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.residents if node not in self.offline]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=n, name=self.names.get(n, ""), public_key=bytes([n])) for n in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers = []
        for message in messages:
            numbers.append(str(next(self._numbers)))
            # what the SuperLink notes on it
            message.metadata.__dict__["_message_id"] = numbers[-1]
            node = message.metadata.dst_node_id
            asked = envelope.unpack(bytes(message.content[envelope.KEY][envelope.KEY]))
            self.pushed.append((node, asked))
            if node in self.failing:
                self._answers[numbers[-1]] = Message(Error(code=2, reason="it raised"), reply_to=message)
            elif node not in self.silent | self.offline:
                about, *answers = envelope.unpack(self.residents[node].answer(envelope.pack(asked)))
                found = {envelope.KEY: envelope.pack(answers), **({envelope.ABOUT: about} if about else {})}
                content = RecordDict({envelope.KEY: ConfigRecord(found)})
                self._answers[numbers[-1]] = Message(content, reply_to=message)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._answers.pop(number) for number in message_ids if number in self._answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError
