"""One of several processes of tests/cpu/test_ranks.py: DTensors and fully_shard against the run on whole tensors.

python -m tests.cpu.ranks RANK RANKS FILE
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import blockzo as bz
from tests.cpu.cases import DTYPES, same_bits, weights

NOISE = bz.Noise(3, "gaussian")
RECORDS = [
    bz.Record(0, 1, "rademacher", (bz.BlockUpdate((0, 1), (0.5, -0.25)),)),
    bz.Record(1, 2, "gaussian", (bz.BlockUpdate((0,), (0.5,)),), stochastic_rounding=True),
]


def change(params) -> None:  # type: ignore[no-untyped-def]
    """Every operation that writes, with both distributions and stochastic rounding."""
    bz.perturb_(params, NOISE, 0.5)
    bz.shift_(params, NOISE, [(0, -0.5), (1, 0.25)])
    bz.update_(params, bz.Noise(4), [0.1, 0.2], decay=0.01, stochastic_rounding=True)
    bz.replay_(params, RECORDS)


def same(found: DTensor, want: torch.Tensor) -> bool:
    """This rank's part, as torch cuts the whole that was moved; and the parts together."""
    part = distribute_tensor(want, found.device_mesh, found.placements).to_local()
    return same_bits(found.detach().to_local(), part.detach()) and same_bits(found.detach().full_tensor(), want)


def check_tensors(ranks: int) -> None:
    line = init_device_mesh("cpu", (ranks,))
    cases = [(line, (placement,)) for placement in (Shard(0), Shard(1), Shard(2), Replicate())]
    for shape in [(1, ranks), (ranks, 1), *([(2, ranks // 2)] if ranks > 2 and ranks % 2 == 0 else [])]:
        grid = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b"))
        pairs = [(Shard(0), Shard(1)), (Shard(2), Shard(0)), (Shard(1), Shard(1)), (Replicate(), Shard(2))]
        pairs.append((Shard(0), Replicate()))
        cases += [(grid, pair) for pair in pairs]
    for mesh, placements in cases:
        for shape in ((6, 5, 40), (1, 1, 1), (2, 3, 1), (7, 300, 2), (0, 4, 4)):
            for dtype in DTYPES:
                whole = torch.nan_to_num(weights(shape, dtype))
                spread = distribute_tensor(whole.clone(), mesh, placements)
                change({"w": spread})
                change({"w": whole})
                assert same(spread, whole), (mesh.shape, placements, shape, dtype)
                assert bz.digest({"w": spread}) == bz.digest({"w": whole})
                found, want = (bz.project({"w": w}, NOISE, [0, 7]) for w in (spread, whole))
                assert torch.allclose(found, want, rtol=1e-12), (found, want)
        check_low_rank(mesh, placements)
        check_scales(mesh, placements)
    # alike in everything but their memory
    pair = {name: distribute_tensor(torch.ones(8, 4), line, (Shard(0),)) for name in "ab"}
    bz.perturb_(pair, NOISE, 1.0)
    for name in "ab":
        assert torch.equal(pair[name].full_tensor(), 1 + NOISE.sample(name, (8, 4)))


def check_scales(mesh, placements) -> None:  # type: ignore[no-untyped-def]
    """A mask that is placed as the parameter, a number for all; a mask that is placed otherwise is refused."""
    whole, mask = torch.nan_to_num(weights((6, 5, 40), torch.bfloat16)), torch.rand(6, 5, 40) < 0.5
    dist.broadcast(mask, 0)
    spread = distribute_tensor(whole.clone(), mesh, placements)
    for params, held in (({"w": spread}, distribute_tensor(mask, mesh, placements)), ({"w": whole}, mask)):
        bz.update_(params, NOISE, [0.1, 0.2], decay=0.01, stochastic_rounding=True, per_weight={"w": held})
        bz.perturb_(params, NOISE, 0.5, per_weight={"w": 0.25})
    assert same(spread, whole), (mesh.shape, placements)
    others = [Replicate() if type(p) is Shard else Shard(0) for p in placements]
    for held, text in ((mask, "a plain tensor"), (distribute_tensor(mask, mesh, others), "placed otherwise")):
        try:
            bz.perturb_({"w": spread}, NOISE, 0.5, per_weight={"w": held})
        except ValueError as error:
            assert text in str(error), error
        else:
            raise AssertionError(f"{text} was taken")


def check_low_rank(mesh, placements) -> None:  # type: ignore[no-untyped-def]
    """What a part's noise is follows from the whole's shape, however few rows and columns this rank has."""
    if any(getattr(placement, "dim", 0) > 1 for placement in placements):
        return
    noise, record = bz.Noise(3, "gaussian", 4), bz.Record(0, 1, "rademacher", RECORDS[0].blocks, rank=3)
    for shape in ((5, 40), (37, 50), (4, 30)):
        whole = torch.nan_to_num(weights(shape, torch.bfloat16))
        spread = distribute_tensor(whole.clone(), mesh, placements)
        for params in ({"w": spread}, {"w": whole}):
            bz.update_(params, noise, [0.1, 0.2], decay=0.01, stochastic_rounding=True)
            bz.replay_(params, [record])
        assert same(spread, whole), (mesh.shape, placements, shape)
        found, want = (bz.project({"w": w}, noise, [0, 7]) for w in (spread, whole))
        assert torch.allclose(found, want, rtol=1e-12), (found, want)


def check_autograd(ranks: int) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    w = nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, (Shard(0),)))
    product = (w * w).sum()
    bz.perturb_({"w": w}, NOISE, 0.5)
    try:
        product.backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        raise AssertionError("autograd did not hear of the write")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 18)
        self.inner = nn.Sequential(nn.Linear(18, 7), nn.LayerNorm(7), nn.Linear(7, 18, bias=False))
        self.head = nn.Linear(18, 31, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.head(self.inner(self.embed(x)))


def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


def check_fully_shard() -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    x = torch.arange(12).view(2, 6)
    for half in (False, True):
        whole, spread = model(), model()
        options = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if half else {}
        fully_shard(spread.inner, **options)
        fully_shard(spread, **options)
        for _ in range(2):
            change(whole)
            change(spread)
            for (name, found), (_, want) in zip(spread.named_parameters(), whole.named_parameters(), strict=True):
                assert same(found, want.detach()), name
            assert bz.digest(spread) == bz.digest(whole)
            # the root keeps its gathered parameters after a forward; the next change must reach the shards and the next forward
            with torch.no_grad():
                found, want = spread(x), whole(x)
            assert half or torch.equal(found, want)
    assert "is a DTensor" in refused(lambda: bz.perturbed(spread, NOISE).__enter__())
    assert "is a DTensor" in refused(lambda: bz.perturbed_losses(spread, NOISE, [0], [1.0], lambda: spread(x).sum()))
    assert "is a DTensor" in refused(lambda: bz.ZO(spread, independent_ranks=True))


def check_tensor_parallel(ranks: int) -> None:
    """Layers cut by columns and by rows; on four ranks also fully_shard over two replicas, and over tensor parallelism."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def layers(mesh=None) -> nn.Module:  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        found = nn.Sequential(nn.Linear(16, 25), nn.ReLU(), nn.Linear(25, 16))
        return parallelize_module(found, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}) if mesh else found

    models = [layers(init_device_mesh("cpu", (ranks,)))]
    if ranks == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        models.append(fully_shard(layers(), mesh=grid))
        both = fully_shard(layers(grid["tensor"]), mesh=grid["data"])
        assert "'0.weight' is a DTensor with placements (_StridedShard" in refused(lambda: change(both))
        assert bz.digest(layers(grid["tensor"])) == bz.digest(layers())
    whole = layers()
    change(whole)
    for spread in models:
        change(spread)
        for (name, found), (_, want) in zip(spread.named_parameters(), whole.named_parameters(), strict=True):
            assert same(found, want.detach()), name
        found, want = (bz.project(params, NOISE, [0, 7]) for params in (spread, whole))
        assert torch.allclose(found, want, rtol=1e-12), (found, want)


def refused(call) -> str:  # type: ignore[no-untyped-def]
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def check_refusals(ranks: int) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    good = distribute_tensor(torch.ones(8, 4), mesh, (Shard(0),))
    partial = DTensor.from_local(torch.ones(8, 4), mesh, (Partial(),))
    # each rank has two rows of what torch would cut otherwise
    odd = DTensor.from_local(torch.ones(2, 4), mesh, (Shard(0),), shape=torch.Size((5 * ranks, 4)), stride=(4, 1))
    for bad, words in ((partial, "redistribute it"), (odd, "expected (5, 4) on this rank")):
        for call in (change, lambda p: bz.project(p, NOISE, [0]), bz.digest):
            text = refused(lambda bad=bad, call=call: call({"a": good, "b": bad}))
            assert words in text and "'b'" in text, text
        assert bool((bad.to_local() == 1).all())
    try:
        from torch.distributed.tensor.placement_types import _StridedShard
    except ImportError:
        pass
    else:
        strided = DTensor.from_local(torch.ones(2, 4), mesh, (_StridedShard(0, split_factor=1),))
        assert "expected Shard and Replicate alone" in refused(lambda: change({"a": good, "b": strided}))
    assert "is a DTensor" in refused(lambda: bz.ops.perturbed_copy(good, NOISE, "w", 1.0))
    assert bool((good.to_local() == 1).all())


def check_fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    assert "use fully_shard" in refused(lambda: bz.perturb_(wrapped, NOISE, 1.0))


def main() -> None:
    rank, ranks, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    check_tensors(ranks)
    check_refusals(ranks)
    check_autograd(ranks)
    check_fully_shard()
    check_tensor_parallel(ranks)
    check_fsdp1()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
