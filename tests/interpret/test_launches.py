"""What a launch asks of a GPU that the interpreter would not refuse: the form of its grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blockzo.noise import Noise
from blockzo.ops.backends.gpu import kernels, products, tables
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step

MANY = 70_000
"""More than the second and third axis of a grid can count."""


class Watched:
    """Stands for a kernel: notes grids, runs nothing."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return lambda *arguments, **options: None


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    # every kernel that is launched, by its name in the module that launches it
    for module in (kernels, products):
        for name, value in vars(module).items():
            if type(value).__module__.startswith("triton.runtime"):
                monkeypatch.setattr(module, name, found)
    return found


def test_no_launch_counts_on_an_axis_that_ends_early(watched: Watched) -> None:
    step = make_step(Noise(1), [3], [0.1])
    rows = torch.zeros(MANY, dtype=torch.int64)
    for width in (128, 100):
        kernels.perturbed_rows(torch.empty(MANY, width), torch.zeros(2, width), rows, step, 5)
    kernels.perturbed_copy(torch.empty(MANY), torch.zeros(MANY), 0, step, 5)
    kernels.replay_([Target("w", 5, torch.zeros(MANY * 2))], [step])
    kernels.project([Target("w", 5, torch.zeros(4096))], make_step(Noise(1), range(MANY), [0.1] * MANY))
    weight = torch.zeros(64, 2048, dtype=torch.float16)
    products.products(torch.zeros(1, MANY, 2048, dtype=torch.float16), weight, None, 0, step, 5)
    assert len(watched.grids) == 7
    assert all(len(grid) == 1 for grid in watched.grids)
    assert max(grid[0] for grid in watched.grids) >= MANY


def test_more_programs_than_a_launch_numbers_are_refused() -> None:
    assert tables.programs(3, 5) == (15,)
    with pytest.raises(ValueError, match="65536 x 65536 programs are more than"):
        tables.programs(1 << 16, 1 << 16)
