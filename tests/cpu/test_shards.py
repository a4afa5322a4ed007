"""A part of a tensor gets the bits that it has when the whole is moved, wherever it was cut and however it lies in memory."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import blockzo as bz
from blockzo.noise import Noise
from blockzo.ops.backends import choice, cpu, reference
from blockzo.ops.params import Target, targets
from blockzo.ops.shards import Shard, indices, place_of, row_major
from blockzo.ops.steps import make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, ISAS, SEED, changes, expected, isa, same_bits, threads, weights

NAMES = ["perturb_", "shift_ of three", "update_ of three", "update_ stochastic", "replay_ stochastic"]
CUTS: dict[str, tuple[tuple[int, ...], tuple[slice, ...]]] = {
    "rows": ((40, 300), (slice(7, 31),)),
    "columns": ((40, 300), (slice(None), slice(100, 257))),
    "few columns": ((300, 7), (slice(None), slice(2, 5))),
    "one column": ((300, 7), (slice(None), slice(3, 4))),
    "a block": ((30, 20, 50), (slice(3, 20), slice(5, 9), slice(10, 49))),
    "the middle dimension": ((6, 20, 130), (slice(None), slice(7, 13))),
    "every third row": ((40, 300), (slice(1, None, 3),)),
    "every third column": ((10, 600), (slice(None), slice(1, None, 3))),
    "long rows": ((5, 9000), (slice(None), slice(77, 8999))),
    "a stretch": ((9000,), (slice(4097, 8500),)),
    "one element": ((9, 9), (slice(4, 5), slice(7, 8))),
    "nothing": ((9, 9), (slice(9, 9),)),
}
LAYOUTS = ("dense", "transposed", "gaps")


def lay(part: Tensor, layout: str) -> Tensor:
    """A copy of `part` in memory of its own."""
    if layout == "transposed" and part.dim() > 1:
        return part.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)
    if layout == "gaps" and part.dim():
        room = torch.zeros(*part.shape[:-1], 2 * part.shape[-1] + 3, dtype=part.dtype)
        return room[..., 3::2].copy_(part)
    return part.contiguous().clone()


def cut(whole: Tensor, slices: tuple[slice, ...], layout: str) -> Shard:
    """A slice of a contiguous tensor, copied, and the indices that torch gives it there."""
    view = whole[slices]
    return Shard(lay(view, layout), view.storage_offset(), view.stride())


def target(shard: Shard, stream: int = 5) -> Target:
    return Target("w", stream, shard.tensor, place_of(shard.tensor.shape, shard.offset, shard.strides))


def check(backend: ModuleType, dtype: torch.dtype, name: str, cuts: Sequence[str] = tuple(CUTS)) -> None:
    for distribution in DISTRIBUTIONS:
        change = changes(distribution)[name]
        for kind in cuts:
            shape, slices = CUTS[kind]
            whole = weights(shape, dtype, seed=len(kind))
            (want,) = expected(change, [whole], [5])
            for layout in LAYOUTS:
                shard = cut(whole, slices, layout)
                change(backend, [target(shard)])
                assert same_bits(shard.tensor, want[slices]), (kind, layout, distribution)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native(isa: str, dtype: torch.dtype, name: str) -> None:
    with threads(2):
        check(cpu, dtype, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference(dtype: torch.dtype, name: str) -> None:
    check(reference, dtype, name)


@pytest.mark.parametrize("name", list(changes("gaussian")))
def test_every_change(name: str) -> None:
    check(cpu, torch.bfloat16, name, ["columns", "a stretch"])


def test_what_lies_between_the_elements_of_a_shard_stays(isa: str) -> None:
    room = weights((40, 300), torch.float32)
    before, part = room.clone(), room[3:30, 5:200]
    changes("gaussian")["update_ of three"](cpu, [target(Shard(part, 5000, (400, 1)))])
    outside = torch.ones(40, 300, dtype=torch.bool)
    outside[3:30, 5:200] = False
    assert same_bits(room[outside], before[outside]) and not same_bits(room[~outside], before[~outside])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_large_shards_on_several_threads(isa: str, count: int) -> None:
    whole = weights((700, 1000), torch.bfloat16)
    change = changes("gaussian")["update_ of three"]
    (want,) = expected(change, [whole], [5])
    shards = [cut(whole, (slice(None), slice(0, 333)), "dense"), cut(whole, (slice(3, 400),), "gaps")]
    with threads(count):
        change(cpu, [target(shard) for shard in shards])
    assert same_bits(shards[0].tensor, want[:, :333]) and same_bits(shards[1].tensor, want[3:400])


@given(
    st.sampled_from([*ISAS, "reference"]),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.data(),
    st.sampled_from(DTYPES),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(NAMES),
    st.sampled_from(LAYOUTS),
    st.integers(1, 4),
)
def test_any_split(name, shape, data, dtype, distribution, operation, layout, ranks) -> None:  # type: ignore[no-untyped-def]
    """All pieces of a tensor, cut as torch.chunk cuts it along one dimension, and one of them along another."""
    dim, other = (data.draw(st.integers(0, len(shape) - 1)) for _ in range(2))
    whole = weights(tuple(shape), dtype)
    change = changes(distribution)[operation]
    (want,) = expected(change, [whole], [9])
    for outer, wanted in zip(whole.chunk(ranks, dim), want.chunk(ranks, dim), strict=True):
        for view, right in zip(outer.chunk(2, other), wanted.chunk(2, other), strict=True):
            shard = Shard(lay(view, layout), view.storage_offset(), view.stride())
            with isa(name if name != "reference" else ISAS[0]):
                change(reference if name == "reference" else cpu, [target(shard, 9)])
            assert same_bits(shard.tensor, right)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_a_block_at_offsets_has_the_indices_of_that_slice(shape, data) -> None:  # type: ignore[no-untyped-def]
    whole = torch.arange(torch.Size(shape).numel()).view(*shape)
    offsets = [data.draw(st.integers(0, n)) for n in shape]
    sizes = [data.draw(st.integers(0, n - o)) for n, o in zip(shape, offsets, strict=True)]
    view = whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
    shard = Shard.at(torch.zeros(*sizes), shape, offsets)
    place = place_of(sizes, shard.offset, shard.strides)
    if place is None:
        assert torch.equal(view.reshape(-1), torch.arange(view.numel()))
    else:
        found = indices(sizes, place, 0, view.numel(), torch.device("cpu"))
        assert torch.equal(found.view(*sizes), view)


def test_shards_beyond_32_bits() -> None:
    step = make_step(Noise(SEED, "gaussian"), [3], [0.5])
    part = weights((20, 130), torch.float32)
    shard = Shard(part.clone(), 2**62 + 77, (2**40 + 5, 1))
    index = (2**62 + 77 + torch.arange(20).view(-1, 1) * (2**40 + 5) + torch.arange(130)).view(-1)
    z = bz.noise.noise_at(index, SEED, "gaussian", 5, 3).view(20, 130)
    for backend in (cpu, reference):
        shard = Shard(part.clone(), 2**62 + 77, (2**40 + 5, 1))
        backend.perturb_([target(shard)], step)
        assert same_bits(shard.tensor, part + 0.5 * z)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_projections_of_parts_add_up(isa: str, distribution: str) -> None:
    step = make_step(Noise(SEED, distribution), [0, 5], [1.0, 1.0])
    whole = torch.randn(90, 301, generator=torch.Generator().manual_seed(1))
    want = torch.tensor(reference.project([Target("w", 5, whole)], step), dtype=torch.float64)
    size = whole.double().abs().sum() * 5
    for dim in (0, 1):
        totals = torch.zeros(2, dtype=torch.float64)
        for k, view in enumerate(whole.chunk(3, dim)):
            shard = target(Shard(lay(view, LAYOUTS[k]), view.storage_offset(), view.stride()))
            with threads(2):
                found = cpu.project([shard], step)
            assert found == reference.project([shard], step)
            totals += torch.tensor(found, dtype=torch.float64)
        assert bool(((totals - want).abs() <= (512 + whole.numel() / 2048) * 2.0**-53 * size).all())


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_public_operations(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setattr(choice, "for_tensor", lambda tensor: reference)
    noise, records = (
        Noise(SEED, "gaussian"),
        [
            bz.Record(0, 1, "gaussian", (bz.BlockUpdate((0, 1), (0.5, -0.25)),)),
            bz.Record(1, 2, "gaussian", (bz.BlockUpdate((0,), (0.5,)),), stochastic_rounding=True),
        ],
    )

    def run(params) -> None:  # type: ignore[no-untyped-def]
        bz.perturb_(params, noise, 0.5)
        bz.shift_(params, noise, [(0, -0.5), (1, 0.25)])
        bz.update_(params, noise, [0.1, 0.2], decay=0.01, stochastic_rounding=True)
        bz.replay_(params, records)

    for dtype in DTYPES:
        a, b = torch.nan_to_num(weights((30, 200), dtype)), torch.nan_to_num(weights(77, dtype))
        shards = {"a": Shard.at(a[:, 50:120].clone(), a.shape, (0, 50)), "b": b.clone()}
        whole = {"a": a, "b": b}
        run(whole)
        run(shards)
        assert same_bits(shards["a"].tensor, a[:, 50:120]) and same_bits(shards["b"], b)
        rest = {"a": Shard.at(a[:, :50], a.shape, (0, 0))}, {"a": Shard.at(a[:, 120:], a.shape, (0, 120))}
        parts = sum(bz.project(part, noise, [0, 1]) for part in (shards, *rest))
        assert torch.allclose(parts, bz.project(whole, noise, [0, 1]), rtol=1e-12)


def test_autograd_hears_of_the_write() -> None:
    w = torch.ones(5, requires_grad=True)
    product = (w * w).sum()
    bz.perturb_({"w": Shard(w, 7, (1,))}, bz.Noise(1), 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_shard_that_is_the_whole_is_a_whole_tensor() -> None:
    (found,) = targets({"w": Shard(torch.ones(3, 4), 0, (4, 1))})
    assert found.place is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: Shard(w, 0, (4,)), "has strides .4,.; expected one a dimension"),
        (lambda w: Shard(w, -1, (4, 1)), "offset -1"),
        (lambda w: Shard(w, 0, (4, -1)), "expected indices from 0"),
        (lambda w: Shard(w, 2**63 - 10, (4, 1)), "2..63 - 1"),
        (lambda w: Shard(w, 0, (3, 1)), "give two elements one index"),
        (lambda w: Shard(w, 0, (0, 1)), "give two elements one index"),
        (lambda w: Shard([1.0], 0, (1,)), "is a list; expected a plain torch.Tensor"),
        (lambda w: Shard.at(w, (3, 5), (0, 2)), "does not lie in a tensor of shape"),
        (lambda w: Shard.at(w, (3, 5, 1), (0, 0)), "does not lie in a tensor of shape"),
        (lambda w: bz.digest({"w": Shard(w, 0, (4, 1))}), "'w': a Shard, whose whole is not known"),
        (lambda w: bz.perturb_({"w": Shard(w.long(), 4, (4, 1))}, Noise(1), 1.0), "'w' has dtype torch.int64"),
        (
            lambda w: bz.perturb_({"w": Shard(w, 4, (4, 1)), "v": Shard(w[1:], 4, (4, 1))}, Noise(1), 1.0),
            "'w' and 'v' overlap in memory",
        ),
        (lambda w: bz.perturb_({"w": Shard(w[:1].expand(3, 4), 4, (4, 1))}, Noise(1), 1.0), "'w' is an expanded view"),
    ],
)
def test_refusals(make, message: str) -> None:  # type: ignore[no-untyped-def]
    w = torch.ones(3, 4)
    with pytest.raises(ValueError, match=message):
        make(w)
    assert bool((w == 1).all())


def test_row_major() -> None:
    assert row_major((3, 4, 5)) == torch.zeros(3, 4, 5).stride() and row_major(()) == ()
