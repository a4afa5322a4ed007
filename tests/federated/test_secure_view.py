"""What is seen of one client in a run with secure sums: nothing, by the server, on disk, or in what it refuses."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockzo.federated.protocol import messages as m
from blockzo.federated.secagg import crypto
from blockzo.federated.secagg.fixed_point import to_words
from tests.federated.secure_problem import (
    code_of,
    finish,
    inner,
    make,
    sum_of,
)


def words(values: list[int]) -> set[bytes]:
    return {struct.pack("<Q", word) for word in to_words(values)}


@pytest.mark.parametrize("secure", [True, False])
def test_no_value_of_a_client_reaches_the_server(secure: bool, tmp_path: Path) -> None:
    """All bytes that clients send, for every value in every form that travels; a plain run is where they are found."""
    federation = make(tmp_path, 3, secure_sum=secure)
    sent: list[bytes] = []
    values: list[float] = []
    for client in federation.clients.values():
        estimate = client.worker.estimate

        def noted(number: int, slot: int, estimate: Any = estimate) -> Any:
            found = estimate(number, slot)
            values.extend((found.loss, *found.scalars, found.loss * found.examples))
            values.extend(scalar * found.examples for scalar in found.scalars)
            return found

        client.worker.estimate = noted  # type: ignore[method-assign]
    federation.transport.round(deliver=lambda name, data: sent.append(data) or data)  # type: ignore[func-returns-value]
    forms = {struct.pack("<f", v) for v in values} | words([round(v * (1 << 20)) for v in values])
    assert any(form in data for form in forms for data in sent) != secure


def test_what_the_server_holds_does_not_unmask_one_client(tmp_path: Path) -> None:
    """From all it got it can take a survivor's own mask, or a late client's pair masks, never both."""
    federation = make(tmp_path, 4)
    late: dict[str, bytes] = {}
    kept: dict[str, Any] = {}

    def deliver(name: str, data: bytes) -> bytes | None:
        kept["sum"] = sum_of(federation).sum
        if name == "c3" and federation.server.phase == 2:
            late[name] = inner(data, federation)[17:]
            return None
        return data

    # secrets of the clients, that the server does not have; with them the check below finds the values
    parts = {name: client._secure for name, client in federation.clients.items()}
    for part in parts.values():
        begin = part.begin  # type: ignore[union-attr]

        def begun(task: Any, estimate: Any, part: Any = part, begin: Any = begin) -> bytes:
            answer = begin(task, estimate)
            part.test_sum, part.test_values = part._sum, part._values
            return bytes(answer)

        part.begin = begun  # type: ignore[union-attr, method-assign]
    assert federation.transport.round(deliver=deliver).participants == ("c0", "c1", "c2")
    server = kept["sum"]
    masked = {name: server._masked[number] for name, number in server.numbers.items() if number in server._masked}
    masked["c3"] = np.frombuffer(late["c3"], dtype="<u8").astype(np.uint64)

    def pairs(name: str, key: Any) -> Any:
        total = np.zeros(server.length, dtype=np.uint64)
        for other, number in server.numbers.items():
            if other != name:
                shared = crypto.agreed(key, server._keys[other].mask, server.bound, b"mask")
                mask = crypto.stream(shared, server.length)
                total = total + mask if number > server.numbers[name] else total - mask
        return total

    for name, part in parts.items():
        values = np.array(to_words(part.test_values), dtype=np.uint64)  # type: ignore[union-attr]
        secrets = part.test_sum  # type: ignore[union-attr]
        recovered = server._recovered(server.numbers[name])
        if name == "c3":
            left = masked[name] - pairs(name, crypto.key_from(recovered))
            whole = left - crypto.stream(secrets._seed, server.length)
        else:
            left = masked[name] - crypto.stream(recovered, server.length)
            whole = left - pairs(name, secrets._mask_key)
        assert (whole == values).all()
        assert not (left == values).any()


def test_secrets_of_a_sum_are_not_on_disk(tmp_path: Path) -> None:
    federation = make(tmp_path)
    found = 0

    def deliver(name: str, data: bytes) -> bytes | None:
        nonlocal found
        part = federation.clients[name]._secure
        current = part._sum if part is not None else None
        if current is not None:
            found += 1
            secrets = (current._seed, current._mask_key.private_bytes_raw(), current._channel.private_bytes_raw())
            for path in tmp_path.rglob("*"):
                assert not any(secret in path.read_bytes() for secret in secrets if path.is_file())
        return data

    federation.transport.round(deliver=deliver)
    assert found == 3 * 4
    # nor are they kept when the sum is over
    assert all(client._secure._sum is None for client in federation.clients.values())  # type: ignore[union-attr]


def test_a_client_that_cannot_estimate_tells_no_value(tmp_path: Path) -> None:
    federation = make(tmp_path)

    def huge(number: int, slot: int) -> Any:
        return replace(estimate(number, slot), loss=123456789012.0)

    def failing(number: int, slot: int) -> Any:
        raise ValueError("row 3 says: secret")

    estimate = federation.clients["c1"].worker.estimate
    federation.clients["c1"].worker.estimate = huge  # type: ignore[method-assign]
    federation.clients["c2"].worker.estimate = failing  # type: ignore[method-assign]
    tasks = federation.server.open_round(federation.clients, 0.0)
    for name in ("c1", "c2"):
        answer = federation.clients[name].handle(tasks[name])
        assert code_of(answer) == m.INVALID
        assert b"1.23" not in answer and b"secret" not in answer
        federation.server.receive(name, answer)
    assert finish(federation, tasks, "c2").participants == ("c0", "c3")


def test_nothing_of_one_client_is_told_in_a_run_with_sums(tmp_path: Path) -> None:
    federation = make(tmp_path)
    with pytest.raises(ValueError, match="held-out scores"):
        federation.server.ask_scores(["c0"])
    client, tag = federation.clients["c0"], federation.server.tag
    for task in (
        m.Task(0, 0, b""),
        m.Task(0, 0, b"", evaluate=True),
        m.Task(0, 0, b"", evaluate=True, nonce=bytes(16)),
    ):
        assert code_of(client.handle(m.encode(task, tag))) == m.INVALID
    plain = make(tmp_path / "plain", secure_sum=False)
    asked = m.encode(m.Task(0, 0, b"", nonce=bytes(16)), plain.server.tag)
    assert code_of(plain.clients["c0"].handle(asked)) == m.INVALID
    body = m.encode(m.SumMessage(bytes(40)), plain.server.tag)
    assert code_of(plain.clients["c0"].handle(body)) == m.INVALID
    assert code_of(plain.server.receive("c0", body)) == m.STALE
