"""The bytes of a run, for every way to combine scalars: a client of an older blockzo and a newer one are in one run.

`python -m tests.federated.test_wire_bytes` prints the table; its digests change with the protocol alone (`PROTOCOL`).
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

import blockzo as bz
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.examples import widths
from blockzo.federated.protocol.records import encode_record
from blockzo.federated.protocol.round_record import round_record
from blockzo.federated.protocol.settings import RunSettings, run_tag
from tests.federated.problem import settings

LAYOUT, BASE = {"first.weight": 0, "second.weight": 1}, "bz1-" + "5" * 64
PRIVATE = {"mode": "local", "clip": 2.0, "noise_multiplier": 1.0, "delta": 1e-5}
RUNS: dict[str, dict[str, Any]] = {
    "mean": {},
    "equal mean": {"weighting": "equal", "local_steps": 2},
    "trimmed-mean": {"aggregate": "trimmed-mean"},
    "trimmed-mean of 0.4": {"aggregate": "trimmed-mean", "trim": 0.4, "local_steps": 2},
    "median": {"aggregate": "median"},
    "sign": {"aggregate": "sign"},
    "equal sign": {"aggregate": "sign", "weighting": "equal", "local_steps": 2},
    "own directions": {"own_directions": True},
    "pool": {"pool": 64, "aggregate": "median"},
    "secure": {"secure_sum": True, "weighting": "equal"},
    "private": {"privacy": PRIVATE, "weighting": "equal", "aggregate": "sign"},
    "examples": {"per_example": 4, "local_steps": 2},
    "own examples": {"per_example": 4, "own_directions": True},
    "private examples": {"per_example": 2, "privacy": PRIVATE, "weighting": "equal"},
}
# name: tag, then digests of settings in a welcome, of three replies, of the record of a round
EXPECTED: dict[str, tuple[str, str, str, str]] = {
    "mean": ("3aa218bb845358e7", "9d64fba4b522edf5", "afe95b465f6b0710", "8ecb91d91a0d6c3c"),
    "equal mean": ("3406309d0abe672e", "2185932cfef655b9", "8a39fe800a583c0a", "1a24b31950eb0162"),
    "trimmed-mean": ("a40a1549fbb8f7a5", "06dcf4de6d774f54", "9df733f453b0689b", "f3507df2c0846f64"),
    "trimmed-mean of 0.4": ("f8dd35f1a93bb075", "486529efc3be22f5", "8f1c5296cd06015e", "057ca69728dc2c8f"),
    "median": ("6ae3d633ae40a4f2", "596119389e7dbf9a", "8faf275b1faebc13", "f3507df2c0846f64"),
    "sign": ("e80b1df0a667c584", "9323e52084ad3a71", "afa0f8a63447c2b7", "8d12b61a4c842e19"),
    "equal sign": ("521d83209231aab6", "59e0a94a9e234ccb", "18d92b70c0037442", "dff74d585fc974c6"),
    "own directions": ("c55af47e113d1530", "61d545cd8068f77d", "cb11c8fd967beb24", "875c05c2b4d062a4"),
    "pool": ("ed8df839bd6c6dcb", "9f57a56d77703a1e", "cc565b1ab1d2d221", "f3507df2c0846f64"),
    "secure": ("b36465528ec68ed7", "7fc9432edfa063f5", "235e3f6c2ca4606d", "c19c7cdb1b507e40"),
    "private": ("3d2c88521cf91803", "a305030b27311152", "a54a30e3ccd6240b", "dff74d585fc974c6"),
    "examples": ("3711f95e3abc9591", "6dd17300abef7d26", "eebf5aae182fdc7f", "7f990b86214d527e"),
    "own examples": ("7e480b2d82371f94", "1f31c93875917cc0", "4b1d4ec781e5b919", "6a8cb3a6b0550e07"),
    "private examples": ("a0199ef29fe4bf33", "0eb07d6b1692f992", "c6e8bdfa2f2b5637", "3a414d3a49355f9c"),
}


def digest(data: bytes) -> str:
    return hashlib.blake2s(data, digest_size=8).hexdigest()


def bytes_of(run: RunSettings) -> tuple[str, str, str, str]:
    tag = run_tag(run, BASE, LAYOUT)
    welcome = m.encode(m.Welcome(run.as_dict(), BASE, 3), tag)
    replies = []
    for client in range(3):
        counts = (1 + client, 4 - client)[: run.local_steps] if run.counted else ()
        scalars = [(-1.0) ** (i * client) * (1 + i / 8 + client) for i in range(sum(widths(run, counts)))]
        if run.aggregate == "sign":
            scalars = [1.0 if value > 0 else -1.0 for value in scalars]
        slot = client if run.own_directions else 0
        examples = sum(counts) or 10 + client
        replies.append(m.Reply(7, examples, 0.5 + client / 4, tuple(scalars), "bz1-" + "a" * 64, slot, counts))
    sent = [m.encode(reply, tag, run) for reply in replies]
    record, _ = round_record(run, 7, [reply for data in sent if isinstance(reply := m.decode(data, tag, run), m.Reply)])
    return tag.hex(), digest(welcome), digest(b"".join(sent)), digest(encode_record(record, run))


@pytest.mark.parametrize("name", RUNS)
def test_the_bytes_of_a_run_stay(name: str) -> None:
    run = settings(bz.SPZO(1, 3), **RUNS[name])
    assert bytes_of(run) == EXPECTED[name]
    assert RunSettings.from_dict(run.as_dict()) == run


if __name__ == "__main__":
    for name, given in RUNS.items():
        print(f"    {name!r}: {bytes_of(settings(bz.SPZO(1, 3), **given))},".replace("'", '"'))
