"""One of several processes of tests/core/test_distributed.py: steps of models whose weights are spread over the ranks.

python -m tests.core.sharded_ranks RANK RANKS FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import blockzo as bz
from blockzo.methods.base import Method
from blockzo.optim.in_place import InPlaceExecutor
from blockzo.optim.step import step_seed
from tests.core import zoo

Make = Callable[[], nn.Module]
PLAN = {"up": ColwiseParallel, "down": RowwiseParallel}
Loss = Callable[[nn.Module, Any], torch.Tensor]


def llama() -> nn.Module:
    return zoo.make("llama")


def fsdp() -> nn.Module:
    model = llama()
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer(), Layer())


def tensor_parallel() -> nn.Module:
    """The first layer stays whole, on every rank."""
    plan = {f"{layer}.{name}": style() for layer in (1, 2) for name, style in PLAN.items()}
    return parallelize_module(layers(), init_device_mesh("cpu", (dist.get_world_size(),)), plan)


def own_rows(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All but the last rank have one row each, the last the rest."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    stop = None if rank == ranks - 1 else rank + 1
    return {name: value[rank:stop] for name, value in batch.items()}


def labels_of(batch: dict[str, torch.Tensor]) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


def classes(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x)[:, :4], x[:, :4].argmax(1))


def check(
    make: Make, spread: Make, loss: Loss | None, batch_of: Callable[[int], tuple[Any, Any]], method: Method
) -> None:
    """Losses of the whole model to rounding; what the ranks hold, exactly what the same records and moves make of it."""
    one, many = make(), spread()
    cut = [2] if isinstance(method, bz.SPZO) else []
    given = {"method": method, "lr": 0.01, "eps": 1e-2, "seed": 5, "weight_decay": 0.1, "distribution": "gaussian"}
    shared = {"split": "batch", "evaluate": "in_place", "rows_of": None if loss else labels_of}
    zo = bz.DistributedZO(many, loss, blocks=bz.Blocks(many, cut), max_group=1, **shared, **given)
    blocks = bz.Blocks(one, cut)
    plain = bz.ZO(one, loss, independent_ranks=True, evaluate="in_place", blocks=blocks, max_group=1, **given)
    for step in range(3):
        whole, own = batch_of(step)
        want = plain.estimate(whole).record
        assert zo.estimate(own).record.step == step
        found = zo.step(own)
        assert torch.allclose(torch.tensor(found.losses), torch.tensor(want.losses), atol=2e-5), (found, want)
        assert len(set(zo.ranks.objects(found.record))) == 1
        # whole weights were moved and restored once, as those of the ranks; now again, then the update of the ranks' record
        executor = InPlaceExecutor(blocks, bz.Noise(step_seed(5, step), "gaussian"), (1e-2,) * len(blocks))
        executor.run(method.tree(len(blocks)), partial(plain.loss_fn, one, whole))
        executor.finish(found.record.blocks, False)
        plain.step_number += 1
        assert bz.digest(many) == bz.digest(one), (method, step)


def main() -> None:
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))

    def of_text(step: int) -> tuple[Any, Any]:
        batch = zoo.batch(rows=ranks + 1, seed=step)
        return batch, own_rows(batch)

    def of_numbers(step: int) -> tuple[Any, Any]:
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(step))
        return x, x

    for method in (bz.MeZO(), bz.OneSided(2), bz.SPZO(1, 2), bz.SPZO(1, 2, "decoupled")):
        check(llama, fsdp, None, of_text, method)
        check(layers, tensor_parallel, classes, of_numbers, method)
    model = fsdp()
    before = bz.digest(model)
    zo = bz.DistributedZO(model, split="batch", evaluate="in_place")
    try:
        zo.step(None if rank else zoo.batch())
    except ValueError as error:
        assert "rank 1: step 0: a rank has no row" in str(error), error
    else:
        raise AssertionError("nothing was refused")
    assert bz.digest(model) == before
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
