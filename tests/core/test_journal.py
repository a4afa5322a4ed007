"""The journal: what is written is read, and no damage goes unseen."""

from __future__ import annotations

import io
import os
import random
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import blockzo as bz
from blockzo.journal import format as fmt
from blockzo.journal.reader import Reader
from blockzo.journal.record import float32
from tests.core import journals

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
rates = st.floats(0, 1e3)


@st.composite
def records(draw) -> bz.Record:
    blocks = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(0, 5))
        in_order = draw(st.booleans())
        directions = range(count) if in_order else [draw(st.integers(0, 2**32 - 2)) for _ in range(count)]
        numbers = tuple(draw(finite) for _ in range(count))
        blocks.append(bz.BlockUpdate(tuple(directions), numbers, draw(rates), draw(rates), draw(rates)))
    return bz.Record(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.sampled_from(["rademacher", "gaussian"])),
        tuple(blocks),
        tuple(draw(st.lists(finite, max_size=4))),
        draw(st.booleans()),
    )


@given(records())
@settings(deadline=None)
def test_a_record_survives_its_bytes(record: bz.Record) -> None:
    assert fmt.decode_record(fmt.encode_record(record)) == record


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=500)
def test_any_bytes_decode_to_a_record_or_a_clear_error(data: bytes) -> None:
    for decode in (fmt.decode_record, lambda data: list(Reader(io.BytesIO(data)).frames()), fmt.decode_digest):
        try:
            decode(data)
        except ValueError as error:
            assert str(error)


def test_round_trip(tmp_path: Path) -> None:
    final = journals.write(tmp_path / "j")
    journal = bz.Journal.open(tmp_path / "j")
    journal.verify()
    third = journal.records()[2]
    assert third.digest is not None and replace(third, digest=None) == journals.record(2)
    assert [r for r in journal.records() if r.step != 2] == [journals.record(s) for s in (0, 1, 3, 4)]
    assert journal.layout == journals.LAYOUT and journal.metadata == {"lr": [0.1, 0.2], "task": "sst2"}
    assert journal.finished and journal.final_digest == bz.digest(final) == journals.rebuild(tmp_path / "j")
    assert journal.base_digest == bz.digest(journals.weights()) and journal.exact


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    """A reader written from docs/journal.md alone, without any of the package's code."""
    import json
    import zlib

    journals.write(tmp_path / "j", steps=2)
    data = (tmp_path / "j").read_bytes()
    assert data[:20] == b"\x89blockzo journal\r\n\x1a\n" and struct.unpack_from("<H", data, 20) == (1,)
    at, chain, bodies = 22, zlib.crc32(data[:22]), []
    while at < len(data):
        length, check = struct.unpack_from("<II", data, at)
        chain = zlib.crc32(data[at : at + 4], chain)
        assert chain == check
        body = data[at + 8 : at + 8 + length]
        chain = zlib.crc32(body, chain)
        assert struct.unpack_from("<I", data, at + 8 + length) == (chain,)
        bodies.append(body)
        at += 12 + length
    header = json.loads(zlib.decompress(bodies[0][1:]))
    assert header["layout"] == journals.LAYOUT and header["contract"] == "blockzo noise v1"
    assert [body[0] for body in bodies] == [0, 1, 1, 3]
    flags, blocks, step, seed, losses = struct.unpack_from("<BHIQI", bodies[2], 1)
    assert (flags, blocks, step, seed, losses) == (2 | 4, 2, 1, (1 << 63) + 1, 2)
    assert struct.unpack_from("<2f", bodies[2], 20) == (0.5, 1.25)
    count, lr, eps, decay, coefficient = struct.unpack_from("<Idddf", bodies[2], 28)
    assert (count, lr, eps, decay, coefficient) == (1, 0.1, 1e-3, 1e-4, float32(0.125 - 0.3))


def test_resume_after_a_cut_at_every_byte(tmp_path: Path) -> None:
    """Complete records stay, the torn one goes, and the run ends with the same file as an uninterrupted one."""
    journals.write(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    header = len(whole) - len(_after_header(whole))
    seen = set()
    for cut in range(len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        if cut < header:
            with pytest.raises(bz.JournalError, match="start again|not a blockzo journal"):
                bz.Journal.resume(path)
            continue
        before = bz.Journal.open(path)
        with bz.Journal.resume(path) as journal:
            seen.add(len(journal))
            assert before.dropped == journal.dropped and before.records() == journal.records()
            if not journal.finished:
                with pytest.raises(bz.JournalError, match="not finished|changed|left out"):
                    bz.Journal.open(path).verify()
            weights = journals.weights()
            bz.replay_(weights, journal.records(), journal.layout)
            for step in range(len(journal), 5):
                journal.append(journals.record(step))
                bz.replay_(weights, [journals.record(step)], journal.layout)
                if step == 2:
                    journal.add_digest(bz.digest(weights))
            journal.finish(bz.digest(weights))
        journals.rebuild(path)
        # a cut just before the digest record after step 2 loses that record, which nobody needs
        lost_digest = bz.Journal.open(path).records()[2].digest is None
        assert path.read_bytes() == whole or lost_digest
    assert seen == {0, 1, 2, 3, 4, 5}


def _after_header(data: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", data, 22)
    return data[22 + 12 + length :]


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    journals.write(tmp_path / "j", steps=3)
    whole = (tmp_path / "j").read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (tmp_path / "j").write_bytes(damaged)
            with pytest.raises(bz.JournalError):
                bz.Journal.open(tmp_path / "j").verify()


def mutate(data: bytes, choose: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 5, 40))):
        kind = choose.randrange(8)
        place = choose.randrange(len(result) + 1)
        size = choose.choice((1, 2, 4, 8, 60, 400))
        if kind == 0:
            del result[place:]
        elif kind == 1:
            del result[place : place + size]
        elif kind == 2:
            result[place:place] = choose.randbytes(size)
        elif kind == 3:
            result[place : place + size] = bytes(min(size, len(result) - place))
        elif kind == 4:
            other = choose.randrange(len(result) + 1)
            result[place:place] = result[other : other + size]
        elif kind == 5 and len(result) >= 4:
            place = choose.randrange(len(result) - 3)
            struct.pack_into("<I", result, place, choose.choice((0, 1, 2**31, 2**32 - 1, choose.getrandbits(32))))
        elif result:
            place = choose.randrange(len(result))
            result[place] ^= 1 << choose.randrange(8)
    return bytes(result)


@pytest.mark.parametrize("count", [3000, pytest.param(120_000, marks=pytest.mark.slow)])
def test_fuzzed_files_never_crash_and_never_give_a_wrong_model(count: int, tmp_path: Path) -> None:
    final = bz.digest(journals.write(tmp_path / "j"))
    whole = (tmp_path / "j").read_bytes()
    choose = random.Random(count)
    refused = 0
    for _ in range(count):
        damaged = mutate(whole, choose)
        (tmp_path / "j").write_bytes(damaged)
        try:
            assert journals.rebuild(tmp_path / "j") == final
            assert damaged == whole
        except bz.JournalError as error:
            assert len(str(error)) > 20
            refused += 1
    assert refused > 0.9 * count


def test_records_must_follow_one_another(tmp_path: Path) -> None:
    with bz.Journal.create(tmp_path / "j", layout=journals.LAYOUT) as journal:
        journal.append(journals.record(0))
        size = os.path.getsize(tmp_path / "j")
        with pytest.raises(bz.JournalError, match="expects step 1"):
            journal.append(journals.record(2))
        with pytest.raises(bz.JournalError, match="1 blocks"):
            journal.append(replace(journals.record(1), blocks=journals.record(1).blocks[:1]))
        assert os.path.getsize(tmp_path / "j") == size
        journal.finish("bz1-x")
        with pytest.raises(bz.JournalError, match="finished"):
            journal.append(journals.record(1))
    with pytest.raises(bz.JournalError, match=r"Journal\.resume"):
        bz.Journal.open(tmp_path / "j").append(journals.record(1))
    assert len(bz.Journal.open(tmp_path / "j")) == 1


def test_two_writers_and_existing_files_are_refused(tmp_path: Path) -> None:
    with bz.Journal.create(tmp_path / "j") as _:
        with pytest.raises(bz.JournalError, match="another process"):
            bz.Journal.resume(tmp_path / "j")
        with pytest.raises(bz.JournalError, match="exists"):
            bz.Journal.create(tmp_path / "j")
    assert [p.name for p in tmp_path.iterdir()] == ["j"]
    for call in (bz.Journal.open, bz.Journal.resume):
        with pytest.raises(bz.JournalError, match="No such file"):
            call(tmp_path / "none")
    with pytest.raises(bz.JournalError, match="choose a place"):
        bz.Journal.create(tmp_path / "none" / "j")
    with pytest.raises(bz.JournalError, match="JSON"):
        bz.Journal.create(tmp_path / "k", metadata={"x": float("nan")})
    (tmp_path / "text").write_text("hello" * 20)
    with pytest.raises(bz.JournalError, match="not a blockzo journal"):
        bz.Journal.open(tmp_path / "text")


def test_a_full_disk_leaves_a_valid_journal(tmp_path: Path) -> None:
    """A real write that the kernel cuts short: the file may not grow beyond a limit in the middle of a record."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import journals, blockzo as bz
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = bz.Journal.create({str(tmp_path / "j")!r}, layout=journals.LAYOUT)
journal.append(journals.record(0))
size = journal._end
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
try:
    journal.append(journals.record(1))
except bz.JournalError as error:
    print(error)
assert len(journal) == 1
"""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limit
    assert "the journal holds 1 steps and is valid" in done.stdout
    with bz.Journal.resume(tmp_path / "j") as journal:
        assert journal.dropped == 0 and len(journal) == 1
        journal.append(journals.record(1))


def test_a_journal_of_another_contract_or_version_is_named(tmp_path: Path) -> None:
    data = fmt.encode_header(
        {"contract": "blockzo noise v9", "base_digest": None, "layout": {}, "metadata": {}, "exact": True}
    )
    (tmp_path / "j").write_bytes(data)
    with pytest.raises(bz.JournalError, match="blockzo noise v9"):
        bz.Journal.open(tmp_path / "j")
    (tmp_path / "j").write_bytes(data[:20] + struct.pack("<H", 7) + data[22:])
    with pytest.raises(bz.JournalError, match="version 7"):
        bz.Journal.open(tmp_path / "j")
