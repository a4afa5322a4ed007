"""Journals and messages as somebody would make them who knows the format: every checksum is right, and what it covers is not.

As a program it runs COUNT cases from SEED under a limit of memory, and prints what they cost:
`python -m tests.core.hostile COUNT SEED [FIRST]`, where FIRST is the number of the first case.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import blockzo as bz
from blockzo.federated.client.worker import directions_of
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.records import decode_record, encode_record, make_record
from blockzo.federated.protocol.settings import PROTOCOL, RunSettings
from blockzo.finetune.facts import RunFacts
from blockzo.finetune.settings import Settings
from blockzo.journal import format as fmt
from blockzo.journal.outside import MOST_TEXT, Refusal
from blockzo.methods import described
from blockzo.simulate.settings import Federation
from tests.core import journals
from tests.federated.problem import settings as run_settings

MEMORY = 256 << 20
SECONDS = 2.0
TAG = bytes(range(8))
NUMBERS = (
    *(-1, 0, 1, 2, 255, 65536, 10**6, 10**8, 2**31, 2**32 - 1, 2**32, 2**53, 2**63, 2**64, 10**18, 10**400),
    *(1e-300, 1e39, 1e308, -1e308, 0.5),
)
WORDS = (
    *("", "\x1b[2J\x1b]0;owned\x07", "\u202e\u200b", "a" * 5000, "\ud800", "../../etc/passwd", "nan", "1e400"),
    *("1000,1000,1000", "1," * 5000, "head", "auto", "0.5", "tree", "Tree"),
)


def deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


def any_value(chance: random.Random) -> Any:
    kind = chance.randrange(8)
    if kind < 2:
        return chance.choice(NUMBERS)
    if kind < 4:
        return chance.choice(WORDS)
    if kind == 4:
        return chance.choice((None, True, False, [], {}))
    if kind == 5:
        return deep(chance.choice((2, 30, 63, 70, 400)))
    if kind == 6:
        return [chance.choice(NUMBERS)] * chance.choice((1, 2, 300, 3000))
    return {chance.choice(WORDS): chance.choice(NUMBERS) for _ in range(3)}


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with something else in some place of it."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(inner, (dict, list)):
                walk(inner)

    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        text = json.dumps(value)
        if len(text) > 1 << 20:
            break
        # a copy without shared parts: a change in one of them would be in all
        value = json.loads(text)
        places.clear()
        walk(value)
        if not places:
            return any_value(chance)
        node, key = chance.choice(places)
        how = chance.randrange(6)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[chance.choice(WORDS)] = node.pop(key)
        elif how == 2 and isinstance(node[key], (int, float)):
            node[key] = chance.choice(NUMBERS)
        elif how == 3 and isinstance(node[key], list) and len(json.dumps(node[key])) < 1000:
            node[key] = node[key] * chance.choice((2, 100, 3000))
        else:
            node[key] = any_value(chance)
    return value


def text_of(value: Any, chance: random.Random) -> bytes:
    """Its JSON, sometimes of a kind that no writer makes."""
    try:
        text = json.dumps(value).encode()
    except RecursionError:
        # deeper than a writer could
        return b"[" * 5000 + b"]" * 5000
    kind = chance.randrange(40)
    if kind == 0:
        return text[: chance.randrange(len(text) + 1)]
    if kind == 1:
        return b"[" * chance.choice((100, 100_000)) + text
    if kind == 2:
        return b"[" + chance.choice((b"[],", b'{"":0},', b'"a",', b"0,")) * chance.choice((1000, 600_000)) + b"0]"
    if kind == 3:
        at = chance.randrange(len(text))
        return text[:at] + chance.randbytes(3) + text[at:]
    if kind == 4:
        return chance.choice((b"NaN", b"1e999", b"9" * 5000, b'"' + b'\\"' * 300_000, b"", b"\xff"))
    if kind == 5:
        return text[:-1] + b',"x":"' + b"y" * (9 << 20) + b'"}'
    return text


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    body = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 6))):
        at, kind = chance.randrange(len(body) + 1), chance.randrange(5)
        if kind == 0:
            del body[at:]
        elif kind == 1:
            body[at:at] = chance.randbytes(chance.choice((1, 4, 40)))
        elif kind == 2 and len(body) > 8:
            struct.pack_into(
                "<I", body, chance.randrange(len(body) - 3), chance.choice((0, 1, 2**20, 2**21, 2**28, 2**32 - 1))
            )
        elif kind == 3 and len(body) > 8:
            number = chance.choice((1e39, -1e39, 1e308, float("inf"), float("nan"), 0.0))
            struct.pack_into("<d", body, chance.randrange(len(body) - 7), number)
        elif body:
            body[at % len(body)] ^= 1 << chance.randrange(8)
    return bytes(body)


class Journals:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "j"
        run = run_settings()
        self.header = {
            "contract": "blockzo noise v1",
            "base_digest": "bz1-" + "0" * 64,
            "layout": journals.LAYOUT,
            "exact": True,
            "start": 0,
            "metadata": {
                "settings": Settings("stories15m", method="tree", levels="1,2", split="0.5").as_dict(),
                "simulation": {"settings": Settings("m").as_dict(), "federation": Federation(clients=3).as_dict()},
                "federated": run.as_dict(),
                "data": {"train": {"path": "a", "rows": 3, "truncated": 0, "digest": "0"}},
                "versions": {"torch": "2"},
                "classes": 2,
                "threads": 1,
                "source": "stories15m",
                "identity": {"architecture": {"a": 1}, "files": {"b": "c"}},
            },
        }
        self.bodies = [
            *((fmt.STEP, fmt.encode_record(journals.record(step))) for step in range(4)),
            (fmt.DIGEST, fmt.encode_digest(3, "bz1-0")),
            (fmt.FINISH, fmt.encode_digest(4, "bz1-0")),
        ]

    def one(self, chance: random.Random) -> None:
        header, bodies = self.header, list(self.bodies)
        if chance.randrange(3):
            header = changed(header, chance)
            packed = zlib.compress(text_of(header, chance), 1)
            if not chance.randrange(50):
                packed = zlib.compress(
                    chance.choice((b"[]," * 2_000_000, bytes(50_000_000), b'"' + b"a" * 30_000_000)), 1
                )
            elif not chance.randrange(20):
                packed = bytes_changed(packed, chance)
        else:
            packed = zlib.compress(json.dumps(header).encode(), 1)
            if not chance.randrange(4):
                bodies.insert(0, (fmt.PLAN, text_of(changed({"costs": [1.0, 2.0]}, chance), chance)))
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(bodies))
                kind, body = bodies[at]
                bodies[at] = (kind if chance.randrange(5) else chance.randrange(7), bytes_changed(body, chance))
        data = fmt.MAGIC + struct.pack("<H", 1)
        frame, chain = fmt.encode_frame(fmt.HEADER, packed, zlib.crc32(data))
        data += frame
        for kind, body in bodies:
            frame, chain = fmt.encode_frame(kind, body, chain)
            data += frame
        if not chance.randrange(8):
            at = chance.randrange(len(data))
            data = data[:at] + bytes(chance.choice((1, 100, 5000))) + data[at + 1 :]
        self.path.write_bytes(data)
        journal = bz.Journal.open(self.path)
        refused(lambda: journal.verify())
        facts: list[RunFacts] = []
        refused(lambda: facts.append(RunFacts.of(journal)))
        for found in facts:
            for told in (found.settings, (found.simulation or {}).get("settings", {})):
                refused(lambda told=told: use(Settings.from_dict(told)))
            refused(lambda found=found: Federation.from_dict((found.simulation or {}).get("federation", {})))
        refused(lambda: use_run(journal.metadata.get("federated")))
        refused(lambda: bz.replay_(journals.weights(), journal.records(), journal.layout))


def use(settings: Settings) -> None:
    settings.boundaries()
    method = settings.estimator()
    if not isinstance(method, bz.Auto):
        method.tree(len(settings.lr.split(",")) if settings.lr else 1)


def use_run(values: Any) -> None:
    run = RunSettings.from_dict(values)
    if directions_of(described(run.method), run.blocks) != run.directions:
        raise ValueError("they differ")
    m.reply_bytes(run)


class Messages:
    def __init__(self, folder: Path) -> None:
        self.runs = [
            run_settings(),
            run_settings(aggregate="sign"),
            run_settings(own_directions=True),
            run_settings(pool=64),
        ]
        self.records = []
        for run in self.runs:
            shared = [tuple(range(n)) for n in run.directions]
            found = make_record(run, 4, 0.5, shared, [(0.25,) * len(d) for d in shared], run.rates(4))
            self.records.append(b"" if run.aggregate == "sign" or run.pool else encode_record(found, run))

    def one(self, chance: random.Random) -> None:
        which = chance.randrange(len(self.runs))
        run, record = self.runs[which], self.records[which]
        if chance.randrange(2):
            kind, values = chance.choice(
                [
                    (m.WELCOME, {"settings": run.as_dict(), "base_digest": "bz1-0", "position": 3}),
                    (m.HELLO, vars(m.Hello("a", "b", "c", 1))),
                    (m.REFUSED, vars(m.Refused("stale", "it is over"))),
                ]
            )
            payload = text_of(changed(values, chance), chance)
        else:
            good = m.Reply(3, 5, 1.0, (1.0,) * run.scalars, "bz1-" + "0" * 64)
            pool = {"round": 100, "pool": ["AAAAAAAAAAAAAAAA", ""]}
            message = chance.choice(
                [
                    *(good, m.Task(4, 2, record), m.Scores(3, 5, 0.5, 0.5), m.CatchUp(3), m.Accepted(1)),
                    *(m.Records(4, 1, record, snapshot=pool), m.SumMessage(b"\1" * 40, good.digest)),
                ]
            )
            data = m.encode(message, TAG, run)
            kind, payload = data[0], bytes_changed(data[10:-4], chance)
        head = bytes((kind, PROTOCOL)) + TAG + payload
        try:
            message = m.decode(head + struct.pack("<I", zlib.crc32(head)), TAG, run)
        finally:
            refused(lambda: decode_record(payload[13:], 0, 4, run))
        if isinstance(message, m.Welcome):
            use_run(message.settings)
        elif isinstance(message, m.Refused):
            shown_well(message.reason)
        elif isinstance(message, m.Records) and message.snapshot is not None and run.pool:
            from blockzo.federated.protocol.direction_pool import DirectionPool

            DirectionPool.restored(run, message.snapshot)


def shown_well(text: str) -> None:
    assert len(text) < 3 * MOST_TEXT, f"an error of {len(text)} characters"
    assert all(c.isprintable() or c == "\n" for c in text), f"an error with control characters: {text!r:.200}"


def refused(action: Callable[[], object]) -> None:
    """Goes through, or is refused in words."""
    try:
        action()
    except ValueError as error:
        shown_well(str(error))
        if isinstance(error, Refusal):
            assert str(error)


def run(count: int, seed: int, first: int = 0) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kinds: list[Any] = [Journals(Path(folder)), Messages(Path(folder))]
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        slowest, began = (0.0, ""), time.monotonic()
        for number in range(first, first + count):
            name = f"{seed} {number}"
            kind = kinds[number % 2]
            start = time.process_time()
            try:
                refused(lambda kind=kind, name=name: kind.one(random.Random(name)))
            except BaseException as error:
                raise AssertionError(f"case {name!r} of {type(kind).__name__}") from error
            slowest = max(slowest, (time.process_time() - start, name))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    return {"cases": count, "slowest": slowest, "megabytes": peak / 1024, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:]))))
