"""Messages: what is written is read again, sizes are as promised, and no bytes do harm."""

from __future__ import annotations

import math
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockzo as bz
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.records import decode_record, encode_record, make_record
from blockzo.federated.protocol.settings import RunSettings
from tests.federated.problem import settings
from tests.federated.test_planned_rounds import run_of as planned

TAG = bytes(range(8))
NUMBERS = st.integers(0, 2**32 - 1)
FLOATS = st.floats(width=32, allow_nan=False)


@st.composite
def messages(draw: st.DrawFn) -> tuple[m.Message, RunSettings]:
    run = draw(
        st.sampled_from(
            [settings(), settings(bz.MeZO(), local_steps=3), settings(aggregate="sign"), settings(own_directions=True)]
        )
    )
    scalar = st.sampled_from([-1.0, 1.0]) if run.aggregate == "sign" else FLOATS
    reply = st.builds(
        m.Reply,
        NUMBERS,
        NUMBERS,
        FLOATS,
        st.lists(scalar, min_size=run.scalars, max_size=run.scalars).map(tuple),
        st.none() | st.binary(min_size=32, max_size=32).map(lambda b: "bz1-" + b.hex()),
        st.integers(0, 65535) if run.own_directions else st.just(0),
    )
    task = st.tuples(NUMBERS, NUMBERS).flatmap(
        lambda ends: st.builds(
            m.Task,
            st.just(max(ends)),
            st.just(min(ends)),
            st.binary(),
            st.integers(0, 65535),
            st.booleans(),
            st.booleans(),
        )
    )
    records = st.builds(m.Records, NUMBERS, NUMBERS, st.binary(), st.booleans(), st.none() | st.just({"round": 3}))
    hello = st.builds(m.Hello, st.text(), st.text(), st.text(), NUMBERS)
    scores = st.builds(m.Scores, NUMBERS, st.integers(1, 9), FLOATS.filter(math.isfinite), st.just(0.5))
    rest = st.sampled_from([m.CatchUp(7), m.Accepted(0), m.Refused("stale", "it is over")])
    return draw(st.one_of(reply, task, records, hello, scores, rest)), run


@given(messages())
def test_what_is_written_is_read_again(given_: tuple[m.Message, RunSettings]) -> None:
    message, run = given_
    data = m.encode(message, TAG, run)
    assert m.decode(data, TAG, run) == message


@given(messages(), st.data())
def test_a_damaged_message_is_refused(given_: tuple[m.Message, RunSettings], data: st.DataObject) -> None:
    message, run = given_
    good = bytearray(m.encode(message, TAG, run))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(m.MessageError):
        m.decode(bytes(good), TAG, run)


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def fuzz(count: int, seed: int) -> None:
    """Random payloads, and changed ones, under a right checksum, so that they reach every parser."""
    chance = random.Random(seed)
    runs = [
        settings(),
        settings(aggregate="sign"),
        settings(own_directions=True),
        settings(per_example=3, local_steps=2),
    ]
    runs.append(planned())
    for _ in range(count):
        run = chance.choice(runs)
        good = m.Reply(3, 5, 1.0, (1.0,) * run.scalars, "bz1-" + "0" * 64, counts=(3, 3) if run.counted else ())
        starts = [
            m.encode(good, TAG, run),
            m.encode(m.Task(4, 2, b"abc"), TAG),
            m.encode(m.Records(1, 2, b"xyz", snapshot={"round": 1}), TAG),
            m.encode(m.Hello("a", "b", "c", 1)),
        ]
        body = bytearray(chance.choice(starts)[:-4])
        for _ in range(chance.randrange(4)):
            change = chance.randrange(3)
            at = chance.randrange(len(body)) if body else 0
            if change == 0 and body:
                body[at] = chance.randrange(256)
            elif change == 1:
                del body[at:]
            else:
                body[at:at] = chance.randbytes(chance.randrange(9))
        try:
            m.decode(sealed(bytes(body)), TAG, run)
        except m.MessageError as error:
            assert str(error)


def test_any_bytes_are_a_message_or_a_message_error() -> None:
    fuzz(4_000, 0)


@pytest.mark.slow
def test_any_bytes_are_a_message_or_a_message_error_at_length() -> None:
    fuzz(200_000, 1)


@pytest.mark.parametrize("count", [1, 8, 100])
def test_payloads_are_as_small_as_promised(count: int) -> None:
    """4K + 64 bytes up, 4K + 64 down for a missed round, and less for each further one."""
    run = settings(bz.Decoupled((0, count)))
    assert run.scalars == count
    up = m.encode(m.Reply(9, 32, 0.5, (0.25,) * count, "bz1-" + "a" * 64), TAG, run)
    assert len(up) == m.reply_bytes(run) <= 4 * count + 64
    record = make_record(run, 8, 0.5, [(), tuple(range(count))], [(), (0.25,) * count], run.rates(8))
    body = encode_record(record, run)
    assert len(m.encode(m.Task(9, 8, body, wants_digest=True), TAG)) <= 4 * count + 64
    signs = settings(bz.Decoupled((0, count)), aggregate="sign")
    assert m.reply_bytes(signs) == m.reply_bytes(run) - 4 * count + -(-count // 8)


@given(st.data())
def test_a_record_survives_its_travel(data: st.DataObject) -> None:
    run = data.draw(
        st.sampled_from([settings(weight_decay=0.5), settings(own_directions=True), settings(aggregate="sign")])
    )
    counts = [run.local_steps * n for n in run.directions]
    rates = run.rates(5)
    if run.own_directions:
        moved = [tuple(data.draw(st.lists(st.integers(0, 2**32 - 2), max_size=5))) for _ in counts]
    else:
        moved = [tuple(range(n)) for n in counts]
    finite = FLOATS.filter(math.isfinite)
    values = [tuple(data.draw(finite) for _ in directions) for directions in moved]
    if run.aggregate == "sign":
        from blockzo.federated.protocol.records import sign_coefficient

        sizes = [sign_coefficient(run, block, rates[block]) for block in range(2)]
        values = [tuple(size if v >= 0 else -size for v in found) for size, found in zip(sizes, values, strict=True)]
    record = make_record(run, 5, 0.5, moved, values, rates)
    body = encode_record(record, run)
    assert decode_record(b"--" + body + b"--", 2, 5, run) == (record, 2 + len(body))
    for cut in range(len(body)):
        with pytest.raises(ValueError):
            decode_record(body[:cut], 0, 5, run)


def test_a_record_of_other_settings_is_not_written() -> None:
    run = settings()
    record = make_record(run, 5, 0.5, [(0,), (0, 1, 2)], [(1.0,), (1.0,) * 3], run.rates(5))
    with pytest.raises(ValueError, match="settings differ"):
        encode_record(record, settings(eps=(1e-3, 1e-3)))
