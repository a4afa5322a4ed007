"""Parts of tensors in Triton: runs of consecutive indices get the bits that they have in the whole."""

from __future__ import annotations

import pytest
import torch

from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.backends.gpu import kernels
from blockzo.ops.backends.gpu.runs import Runs, run_tables
from blockzo.ops.backends.gpu.tables import queue_of
from blockzo.ops.shards import Shard
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, SEED, changes, expected, same_bits, weights
from tests.cpu.test_shards import CUTS, LAYOUTS, cut, lay, target

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
FEW = {
    "few columns": ((5, 7), (slice(None), slice(2, 5))),
    "columns": ((3, 300), (slice(None), slice(100, 257))),
    "aligned columns": ((3, 512), (slice(None), slice(128, 384))),
    "a block": ((4, 5, 50), (slice(1, 4), slice(1, 3), slice(10, 49))),
    "every third column": ((2, 30), (slice(None), slice(1, None, 3))),
    "a stretch": ((9000,), (slice(100, 4097 + 129),)),
}


def check(dtype: torch.dtype, distribution: str, name: str) -> None:
    change = changes(distribution)[name]
    shards, wanted = [], []
    for number, (shape, slices) in enumerate(FEW.values()):
        whole = weights(shape, dtype, seed=number)
        (want,) = expected(change, [whole], [number])
        shards.append(cut(whole, slices, LAYOUTS[number % 3]))
        wanted.append(want[slices])
    # beside them a tensor that is whole
    whole = weights(300, dtype)
    wanted += expected(change, [whole], [99])
    shards.append(Shard(whole.clone(), 0, (1,)))
    change(kernels, [target(shard, 99 if k == len(FEW) else k) for k, shard in enumerate(shards)])
    for kind, shard, want in zip([*FEW, "whole"], shards, wanted, strict=True):
        assert same_bits(shard.tensor, want), kind


NAMES = ("perturb_", "shift_ of three", "update_ stochastic")
# each change with each distribution, each dtype with both; all of them together in the long form
FEW_CHANGES = [
    (DTYPES[(number + second) % 3], distribution, name)
    for number, name in enumerate(NAMES)
    for second, distribution in enumerate(DISTRIBUTIONS)
]


@pytest.mark.parametrize(("dtype", "distribution", "name"), FEW_CHANGES, ids=str)
def test_in_place(dtype: torch.dtype, distribution: str, name: str) -> None:
    check(dtype, distribution, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(changes("gaussian")))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_change(dtype: torch.dtype, distribution: str, name: str) -> None:
    check(dtype, distribution, name)


def test_nothing_beside_a_run_is_written() -> None:
    room = weights((4, 300), torch.bfloat16)
    before = room.clone()
    changes("gaussian")["update_ of three"](kernels, [target(Shard(room[1:3, 5:200], 5000, (400, 1)))])
    outside = torch.ones(4, 300, dtype=torch.bool)
    outside[1:3, 5:200] = False
    assert same_bits(room[outside], before[outside]) and not same_bits(room[~outside], before[~outside])


@pytest.mark.parametrize("kind", list(CUTS))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables(kind: str, layout: str) -> None:
    """Every element once: its address, and its index in the whole."""
    shape, slices = CUTS[kind]
    whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    shard = cut(whole, slices, layout)
    if shard.tensor.numel() == 0:
        return
    runs = Runs.of(target(shard)) if target(shard).place else None
    assert runs is not None
    table, chunks = run_tables((runs.layout,), 128, queue_of(torch.device("cpu")))
    flat = runs.memory.storage_offset() * 4 - runs.memory.data_ptr()
    storage = torch.as_strided(runs.memory, (runs.memory.untyped_storage().nbytes() // 4,), (1,), 0)
    found = []
    for address, end, stream, index in table.tolist():
        assert stream == 5 and (address - runs.memory.data_ptr() % 4) % 4 == 0
        lead = index % 128
        first = (address + flat) // 4 + lead
        values = storage[first : first + end - lead]
        assert values.tolist() == list(range(index, index + end - lead))
        found += values.tolist()
    assert sorted(found) == sorted(shard.tensor.reshape(-1).tolist())
    assert len(chunks) == sum(-(-end // 128) for _, end, _, _ in table.tolist())


def test_projections() -> None:
    step = make_step(Noise(SEED, "gaussian"), [0, 2**32 - 2], [1.0, 1.0])
    view = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))[:, 5:17]
    shard = target(Shard(lay(view, "gaps"), view.storage_offset(), view.stride()))
    assert kernels.project([shard], step) == reference.project([shard], step)
