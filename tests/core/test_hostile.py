"""Hostile journals and messages under right checksums: refused in words, at once, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import blockzo as bz
from blockzo.federated.protocol import messages as m
from blockzo.finetune import Settings, UserError
from blockzo.journal import format as fmt
from tests import warm
from tests.core import hostile, journals

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("count", [600, pytest.param(200_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_checksummed_mutations(count: int) -> None:
    command = [sys.executable, "-m", "tests.core.hostile", str(count), "7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["cases"] == count
    assert found["slowest"][0] < hostile.SECONDS, found
    assert found["megabytes"] < hostile.MEMORY >> 20, found


def with_header(path: Path, text: bytes) -> Path:
    start = fmt.MAGIC + b"\1\0"
    frame, _ = fmt.encode_frame(fmt.HEADER, zlib.compress(text, 9), zlib.crc32(start))
    path.write_bytes(start + frame)
    return path


@pytest.mark.parametrize(
    "text", [b"[" + b"[]," * 20_000_000 + b"0]", b"[" * 1_000_000, bytes(1 << 26), b'{"contract":"\x1b]0;owned\x07"}']
)
def test_the_headers_of_the_issue(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(bz.JournalError) as caught:
        bz.Journal.open(with_header(tmp_path / "j", text))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_message_of_200_megabytes() -> None:
    refusal = m.encode(m.Refused("stale" * 100, "\x1b[2J" * 10**6))
    assert len(refusal) < 10_000
    with pytest.raises(m.MessageError, match="200000000 bytes are no message"):
        m.decode(bytes(200_000_000))


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    deep: dict = {}
    for _ in range(100):
        deep = {"a": deep}
    for metadata in (deep, {"x": "y" * (9 << 20)}, {"x": list(range(600_000))}):
        with pytest.raises(bz.JournalError):
            bz.Journal.create(tmp_path / "j", metadata=metadata)
        assert not list(tmp_path.iterdir())
    with bz.Journal.create(tmp_path / "j", metadata={"path": "a\x1b[2J\udc80"}) as journal:
        journal.append(journals.record(0))
    assert bz.Journal.open(tmp_path / "j").metadata == {"path": "a\x1b[2J\udc80"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"levels": "1000,1000,1000", "method": "tree", "split": "0.3,0.6"}, "levels"),
        ({"directions": 10**8, "method": "spsa"}, "levels"),
        ({"blocks": 10**9}, "--blocks"),
        ({"lr": "1," * 10**6}, "--lr"),
        ({"batch": "many"}, "batch"),
        ({"steps": 1.5}, "steps"),
        ({"stochastic_rounding": 1}, "stochastic_rounding"),
        ({"threads": 10**9}, "--threads"),
        ({"unheard": 1}, "unheard"),
    ],
)
def test_settings_of_a_header(values: dict, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        Settings.from_dict({"model": "m", **values})
    assert len(str(caught.value)) < 1500


def test_escape_sequences_of_a_header_do_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    metadata = {"settings": {"model": evil, "task": evil, "steps": 1}, "source": evil, "classes": 2}
    with bz.Journal.create(tmp_path / "j", evil, journals.LAYOUT, metadata) as journal:
        journal.append(journals.record(0))
        journal.finish("bz1-" + "0" * 64)
    for base in ("minilm-none", evil):
        done = warm.run(["-m", "blockzo", "replay", base, tmp_path / "j", tmp_path / "out"])
        assert done.returncode == 2 and done.stderr.startswith(("error: ", "loading ")), done.stderr
        assert all(c.isprintable() or c == "\n" for c in done.stdout + done.stderr), done.stderr
