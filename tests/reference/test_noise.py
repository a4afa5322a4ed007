"""The torch reference of the noise contract against Random123, the published vectors, and an independent NumPy implementation."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import blockzo
from blockzo.noise import Noise, canonical_name, noise_at, noise_range, philox, rounding_bits, stream_id
from tests.reference import contract

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(blockzo.__file__).parent / "noise-v1-vectors.json").read_text(encoding="utf-8")
)["cases"]
KNOWN = [
    ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
seeds = st.integers(0, 2**64 - 1)
streams = st.integers(0, 2**32 - 1)
directions = st.integers(0, 2**32 - 2)
starts = st.one_of(
    st.integers(0, 4096),
    st.integers(2**32 - 300, 2**32 + 300),
    st.integers(2**38 - 300, 2**38 + 300),
    st.integers(0, 2**62),
)
distributions = st.sampled_from(blockzo.noise.DISTRIBUTIONS)


def bits(values: torch.Tensor | np.ndarray[Any, Any]) -> list[int]:
    array = values.numpy() if isinstance(values, torch.Tensor) else values
    return np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).tolist()


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], answer: str) -> None:
    expected = tuple(int(word, 16) for word in answer.split())
    assert contract.philox(counter, key) == expected
    block = counter[0] | counter[1] << 32
    words = philox(
        torch.tensor([block - (1 << 64) if block >> 63 else block]), key[0] | key[1] << 32, counter[2], counter[3]
    )
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['distribution']}-{case['start']}")
def test_vectors(case: dict[str, Any]) -> None:
    expected = [int(word, 16) for word in case["bits"]]
    assert zlib.crc32(case["name"].encode()) == case["stream"] == stream_id(case["name"])
    address = (case["seed"], case["distribution"], case["stream"], case["direction"])
    assert bits(contract.noise(case["start"], len(expected), *address)) == expected
    assert (
        bits(
            Noise(case["seed"], case["distribution"]).sample(
                case["name"], len(expected), case["direction"], case["start"]
            )
        )
        == expected
    )
    index = torch.arange(case["start"], case["start"] + len(expected))
    assert bits(noise_at(index, *address)) == expected


def test_vectors_reach_beyond_32_bits_of_block() -> None:
    assert any(case["start"] >> 39 or case["start"] >> 35 and case["distribution"] == "gaussian" for case in VECTORS)


@given(starts, st.integers(0, 300), seeds, distributions, streams, directions)
def test_equals_numpy(start: int, count: int, seed: int, distribution: str, stream: int, direction: int) -> None:
    address = (seed, distribution, stream, direction)
    expected = bits(contract.noise(start, count, *address))
    assert bits(noise_range(start, count, *address)) == expected
    assert bits(noise_at(torch.arange(start, start + count), *address)) == expected


@given(starts, st.integers(0, 100), seeds, streams)
def test_rounding_bits_equal_numpy(start: int, count: int, seed: int, stream: int) -> None:
    assert rounding_bits(start, count, seed, stream).tolist() == contract.rounding_bits(start, count, seed, stream)


def test_every_16_bit_half_of_the_gaussian() -> None:
    """All 65,536 radii and all 32,768 angles, both signs, against NumPy."""
    words = [low | ((low * 40503) & 0xFFFF) << 16 for low in range(1 << 16)]
    even, odd = blockzo.noise._pair(torch.tensor(words))
    expected = [contract.gaussian_pair(word) for word in words]
    assert len({word >> 16 for word in words}) == 1 << 16
    assert bits(even) == bits(np.array([pair[0] for pair in expected]))
    assert bits(odd) == bits(np.array([pair[1] for pair in expected]))


@pytest.mark.parametrize("distribution", blockzo.noise.DISTRIBUTIONS)
def test_moments(distribution: str) -> None:
    z = Noise(7, distribution).sample("w", 1 << 20).double()
    assert abs(float(z.mean())) < 5 / 2**10
    assert abs(float((z * z).mean()) - 1) < 0.01
    assert abs(float((z**4).mean()) - (3 if distribution == "gaussian" else 1)) < 0.05
    other = Noise(7, distribution).sample("w", 1 << 20, direction=1).double()
    assert abs(float((z * other).mean())) < 5 / 2**10


def test_a_shard_is_a_slice_of_the_whole() -> None:
    for distribution in blockzo.noise.DISTRIBUTIONS:
        noise = Noise(3, distribution)
        whole = noise.sample("w", (37, 53), direction=2)
        assert torch.equal(noise.sample("w", (5, 53), 2, start=20 * 53), whole[20:25])
        assert torch.equal(noise.sample("w", 1, 2, start=1000), whole.view(-1)[1000:1001])
        assert noise.sample("w", (0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("given_name", "canonical"),
    [
        ("w", "w"),
        ("module.w", "w"),
        ("module.module.w", "w"),
        ("module._orig_mod.layers.0._orig_mod.weight", "layers.0.weight"),
        ("_orig_mod.module.w", "w"),
        ("encoder.module.weight", "encoder.module.weight"),
    ],
)
def test_canonical_names(given_name: str, canonical: str) -> None:
    assert canonical_name(given_name) == canonical
    assert stream_id(given_name) == zlib.crc32(canonical.encode())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Noise(-1), "seed is -1"),
        (lambda: Noise(2**64), "seed is"),
        (lambda: Noise(True), "seed is True"),
        (lambda: Noise(0, "uniform"), "distribution is 'uniform'"),
        (lambda: Noise(0).sample("w", 3, direction=2**32 - 1), "direction is"),
        (lambda: Noise(0).sample("w", 3, direction=-1), "direction is"),
        (lambda: Noise(0).sample("w", 3, start=-1), "start is -1"),
        (lambda: Noise(0).sample("w", 3, start=2**63 - 3), "start is"),
        (lambda: Noise(0).sample(2**32, 3), "stream is"),
    ],
)
def test_bad_addresses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
