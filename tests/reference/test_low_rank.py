"""Noise of a low rank in the torch reference, against its vectors and an independent NumPy implementation (docs/noise.md, 9)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import blockzo as bz
from blockzo.contract import MAX_RANK, is_low_rank
from blockzo.noise import Noise, low_rank_at
from tests.packaging.builds import ROOT
from tests.reference import contract
from tests.reference.test_noise import bits

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(bz.__file__).parent / "noise-v1-low-rank-vectors.json").read_text(encoding="utf-8")
)["cases"]
DISTRIBUTIONS = ("rademacher", "gaussian")


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['distribution']}-{case['rank']}")
def test_vectors(case: dict[str, Any]) -> None:
    expected = [[int(word, 16) for word in row] for row in case["bits"]]
    rows = range(case["row"], case["row"] + len(expected))
    columns = range(case["column"], case["column"] + len(expected[0]))
    assert zlib.crc32(case["name"].encode()) == case["stream"]
    address = case["seed"], case["distribution"], case["stream"], case["direction"]
    assert bits(contract.low_rank(rows, columns, case["rank"], *address)) == expected
    height, width = case["shape"]
    assert is_low_rank(case["shape"], case["rank"]) and rows.stop <= height and columns.stop <= width
    index = torch.tensor([[i * width + j for j in columns] for i in rows])
    assert bits(low_rank_at(index, width, case["rank"], *address)) == expected


def test_vectors_reach_beyond_32_bits_of_block() -> None:
    assert any(case["row"] * case["rank"] >> 35 or case["column"] * case["rank"] >> 35 for case in VECTORS)
    assert {case["distribution"] for case in VECTORS} == set(DISTRIBUTIONS)


@given(
    st.sampled_from(DISTRIBUTIONS),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 2),
)
def test_equals_numpy(distribution: str, rank: int, more: int, wider: int, seed: int, direction: int) -> None:
    shape = rank + more, rank + wider
    found = Noise(seed, distribution, rank).sample(7, shape, direction)
    want = contract.low_rank(range(shape[0]), range(shape[1]), rank, seed, distribution, 7, direction)
    assert bits(found) == bits(want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_which_tensors_have_it(distribution: str) -> None:
    low, full = Noise(5, distribution, 4), Noise(5, distribution)
    for shape in ((100,), (4, 100), (100, 4), (1, 1), (), (6, 7, 8), (8, 9, 3, 3), (0, 9)):
        assert torch.equal(low.sample("w", shape), full.sample("w", shape)), shape
        with pytest.raises(ValueError, match="has no factors"):
            low.factors("w", shape)
    z = low.sample("w", (50, 60), 3)
    assert not torch.equal(z, full.sample("w", (50, 60), 3))
    assert torch.linalg.matrix_rank(z.double(), rtol=1e-4) == 4
    a, b = low.factors("w", (50, 60), 3)
    assert a.shape == (50, 4) and b.shape == (60, 4)
    torch.testing.assert_close(z, a @ b.t() / 2)
    # rows and columns do not depend on how many there are
    larger = low.factors("w", (70, 900), 3)
    assert torch.equal(larger[0][:50], a) and torch.equal(larger[1][:60], b)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rank", [1, 4, 64])
def test_moments(distribution: str, rank: int) -> None:
    z = torch.stack([Noise(11, distribution, rank).sample("w", (128, 96), k) for k in range(150)]).double()
    assert abs(z.mean()) < 0.003 and abs((z**2).mean() - 1) < 0.03
    # four corners of a rectangle
    corners = (z[:, ::2, ::2] * z[:, 1::2, ::2] * z[:, ::2, 1::2] * z[:, 1::2, 1::2]).mean()
    assert abs(corners - 1 / rank) < 0.03 + 0.1 / rank


@pytest.mark.parametrize("rank", [1, 3])
def test_squared_error_of_the_estimate(rank: int) -> None:
    """(d + 1 + 2 (m + n + 1) / r) |G|^2, docs/methods.md; blocks of the factors of one large matrix are draws."""
    m, n, draws = 5, 7, 60_000
    a, b = Noise(13, "gaussian", rank).factors("w", (draws * m, draws * n))
    z = a.view(draws, m, rank).double() @ b.view(draws, n, rank).double().transpose(1, 2) / rank**0.5
    gradient = torch.randn(m, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = (gradient * z).sum((1, 2), keepdim=True) * z
    error = ((estimate - gradient) ** 2).sum((1, 2)).mean() / (gradient**2).sum()
    assert abs(error / (m * n + 1 + 2 * (m + n + 1) / rank) - 1) < 0.06
    bias = ((estimate.mean(0) - gradient) ** 2).sum() / (gradient**2).sum()
    assert bias < 4 * error / draws


def test_documented_scales() -> None:
    text = (ROOT / "docs" / "noise.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    names = [int(cell) for cell in next(line for line in lines if line.startswith("| r | 2 |")).split("|")[2:-1]]
    found = next(line for line in lines if line.startswith("| scale |")).split("|")[2:-1]
    scales = [int(cell.strip(" `"), 16) for cell in found]
    assert scales == [int(torch.tensor(rank**-0.5, dtype=torch.float64).float().view(torch.int32)) for rank in names]


@pytest.mark.parametrize("rank", [0, -1, MAX_RANK + 1, 1.0, True, "4"])
def test_ranks_are_checked(rank: Any) -> None:
    with pytest.raises(ValueError, match="rank is .* expected an integer from 1 to 64"):
        Noise(1, "gaussian", rank)


def test_a_start_is_refused_where_the_shape_is_that_of_a_matrix() -> None:
    with pytest.raises(ValueError, match="start is 5; expected 0 for noise of rank 2"):
        Noise(1, "gaussian", 2).sample("w", (9, 9), start=5)
