"""Evolution strategies with the baseline that leaves one out."""

from __future__ import annotations

import pytest
import torch

import blockzo as bz
from blockzo.methods.es import ES


def test_each_loss_is_compared_with_the_mean_of_the_others() -> None:
    found = ES(3).scalars([1.0, 2.0, 6.0], [0.1, 0.2])
    expected = [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]
    for block, eps in enumerate((0.1, 0.2)):
        assert list(found[block].values()) == pytest.approx([slope / (3 * eps) for slope in expected])


def test_a_loss_that_is_the_same_everywhere_moves_nothing() -> None:
    assert all(s == 0 for block in ES(4).scalars([0.7] * 4, [1e-3]) for s in block.values())


def test_it_is_unbiased_on_a_linear_loss() -> None:
    slope, draws = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 1500
    mean = torch.zeros(3, dtype=torch.float64)
    for seed in range(draws):
        z = torch.stack([bz.Noise(seed, "gaussian").sample("w", 3, k).double() for k in range(4)])
        (scalars,) = ES(4).scalars([5.0 + float(0.1 * (slope @ row)) for row in z], [0.1])
        mean += torch.tensor(list(scalars.values()), dtype=torch.float64) @ z / draws
    # of the variance (d + 1) |slope|^2 / 4, about
    assert float((mean - slope).norm()) < 4 * (4 * float(slope @ slope) / 4 / draws) ** 0.5 * 1.5


def test_one_direction_has_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="expected two or more"):
        ES(1)
