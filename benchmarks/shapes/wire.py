"""Bytes of one federated round, of messages as they are encoded (docs/federated.md)."""

from __future__ import annotations

from benchmarks.shapes.formulas import Method
from benchmarks.shapes.methods import rule_of
from blockzo.federated.client.worker import directions_of
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.records import encode_record
from blockzo.federated.protocol.round_record import round_record
from blockzo.federated.protocol.settings import RunSettings, run_tag

RUN, BASE = "00112233445566778899aabbccddeeff", "bz1-" + "5" * 64
CLIENTS, ROUND = 8, 7


def round_bytes(method: Method) -> tuple[int, int]:
    """What a client sends, and what it is sent: the task, with the record of the round before.

    A client that took part in the round before; the digest of the weights, which the server asks for now and then, is not in.
    """
    rule, blocks = rule_of(method), 1 if method.split is None else 2
    counts = directions_of(rule, blocks)
    run = RunSettings(RUN, rule.describe(), counts, rounds=100, lr=(1e-6,) * blocks, eps=(1e-3,) * blocks)
    tag = run_tag(run, BASE, {f"{block}.weight": block for block in range(blocks)})
    replies = [
        m.Reply(ROUND, 16, 0.5 + client / 8, tuple((client - 3.5) / (1 + i) for i in range(sum(counts))))
        for client in range(CLIENTS)
    ]
    sent = [m.encode(reply, tag, run) for reply in replies]
    record, _ = round_record(
        run, ROUND, [found for one in sent if isinstance(found := m.decode(one, tag, run), m.Reply)]
    )
    task = m.encode(m.Task(ROUND + 1, ROUND, encode_record(record, run)), tag)
    return max(map(len, sent)), len(task)
