"""Rounds over secure sums in one process, with a hand on every message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.federated.secagg.round import SecureRound
from blockzo.federated.server.open_round import RoundResult
from tests.federated.problem import Federation, settings

PHASES = ("advertise", "share", "mask", "unmask")
Deliver = Callable[[str, bytes], bytes | None]


def make(path: Path, clients: int = 4, policy: RoundPolicy | None = None, **given: Any) -> Federation:
    """A federation with secure sums, and a quorum of 2 unless told otherwise."""
    path.mkdir(exist_ok=True)
    return Federation(path, clients, settings(**{"secure_sum": True, **given}), policy or RoundPolicy(quorum=2))


def losing(federation: Federation, lost: dict[str, int]) -> Deliver:
    """Drops the messages of a client from a phase on."""
    return lambda name, data: None if federation.server.phase >= lost.get(name, 9) else data


def coefficients(result: RoundResult) -> list[float]:
    assert result.record is not None
    return [c for block in result.record.blocks for c in block.coefficients]


def inner(data: bytes, federation: Federation) -> bytes:
    """The sum's own message in a message."""
    message = m.decode(data, federation.server.tag, federation.settings)
    assert isinstance(message, m.SumMessage)
    return message.body


def sum_of(federation: Federation) -> SecureRound:
    found = federation.server._state.open
    assert found is not None and found.sum is not None
    return found.sum


def sealed(body: bytes, federation: Federation, digest: str | None = None) -> bytes:
    return m.encode(m.SumMessage(body, digest), federation.server.tag)


def code_of(answer: bytes) -> str:
    message = m.decode(answer, None)
    assert isinstance(message, m.Refused) and message.reason
    return message.code


def opened(federation: Federation, phase: int) -> dict[str, bytes]:
    """A round brought to a phase; the messages that begin it."""
    messages = federation.server.open_round(federation.clients, 0.0)
    for _ in range(phase):
        for name, message in messages.items():
            federation.server.receive(name, federation.clients[name].handle(message))
        messages = federation.server.advance(0.0)
    return messages


def finish(federation: Federation, messages: dict[str, bytes], without: str = "") -> RoundResult:
    while messages:
        for name, message in messages.items():
            if name != without:
                federation.server.receive(name, federation.clients[name].handle(message))
        messages = federation.server.advance(0.0, over=True)
    return federation.server.close_round()
