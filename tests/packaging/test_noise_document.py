"""docs/noise.md is what other programs are written from: its constants and examples are those of the code."""

from __future__ import annotations

import re
import struct

import torch

from blockzo import noise
from blockzo.cli import selftest
from tests.packaging.builds import ROOT

TEXT = (ROOT / "docs" / "noise.md").read_text(encoding="utf-8")


def table_row(letter: str) -> list[int]:
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {letter} |")]
    return [int(value, 16) for value in re.findall(r"`([0-9A-F]{8})`", line)]


def test_constants() -> None:
    assert table_row("Q") == list(noise._Q)
    assert table_row("C") == list(noise._C)
    assert table_row("S") == list(noise._S)
    others = (noise._LOG_ORIGIN, noise._LOG_SCALE, noise._ANGLE_SCALE, noise._PHILOX_M0, noise._PHILOX_M1)
    for constant in (*others, noise._PHILOX_W0, noise._PHILOX_W1, noise.ROUNDING_DIRECTION):
        assert f"{constant:08X}" in TEXT


def test_known_answers() -> None:
    rows = [re.findall(r"[0-9a-f]{8}", line) for line in TEXT.splitlines() if re.match(r"\| `[0-9a-f]{8} ", line)]
    documented = [tuple(int(word, 16) for word in row) for row in rows]
    assert documented == [(*counter, *key, *words) for counter, key, words in selftest.KNOWN_ANSWERS]


def test_worked_example() -> None:
    stream = noise.stream_id("w")
    words = [int(word) for word in noise.philox(torch.tensor([0]), 0, stream, 0)]
    assert f"stream `{stream:08x}`" in TEXT and f"`{' '.join(f'{word:08x}' for word in words)}`" in TEXT
    assert f"y = {2 * (words[0] & 0xFFFF) + 1}," in TEXT
    first, second = selftest.bits_of(noise.Noise(0, "gaussian").sample("w", 2))
    assert f"z[0] = `{first}`, z[1] = `{second}`" in TEXT
    radius, angle = struct.unpack(">2f", bytes.fromhex("3fbda6b7" + "3f81c4c6"))
    assert (
        abs(radius**2 * (torch.cos(torch.tensor(angle)) ** 2) - noise.Noise(0, "gaussian").sample("w", 1)[0] ** 2)
        < 1e-5
    )
    bits = " ".join(f"{int(value):04x}" for value in noise.rounding_bits(0, 8, 0, stream))
    assert f"`{bits}`" in TEXT


def test_canonical_name_examples() -> None:
    assert noise.canonical_name("module._orig_mod.layers.0._orig_mod.weight") == "layers.0.weight"
    assert noise.canonical_name("encoder.module.weight") == "encoder.module.weight"
    assert "is `layers.0.weight`; `encoder.module.weight` stays" in TEXT
