"""One of several processes of tests/core/test_distributed.py: steps shared over ranks against those of one process.

python -m tests.core.ranks RANK RANKS FOLDER CHECK...
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import blockzo as bz
from blockzo.methods.base import Method

METHODS: list[Method] = [
    bz.MeZO(),
    bz.SPSA(4),
    bz.SPZO(2, 3),
    bz.SPZO(1, 4, "decoupled"),
    bz.SPZO(2, 2, "decoupled", one_sided=True),
    bz.SPZO(1, 2, "crossed"),
    bz.OneSided(3),
    bz.FZOO(4),
    bz.Tree((1, 2, 2)),
    bz.Decoupled((2, 0, 1), centre=True),
]


def make(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 5)).to(dtype)


def batch(step: int, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(rows, 12, generator=generator)
    return x, x[:, :5].argmax(1)


def loss(model: nn.Module, given: Any) -> torch.Tensor:
    x, labels = given
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), labels)


def options(model: nn.Module, method: Method) -> dict[str, Any]:
    boundaries = [2, 4] if isinstance(method, (bz.Tree, bz.Decoupled)) else [2] if isinstance(method, bz.SPZO) else []
    return {
        "method": method,
        "blocks": bz.Blocks(model, boundaries),
        "lr": lambda step: 0.05 / (step + 1),
        "eps": 1e-2,
        "seed": 7,
        "weight_decay": 0.01,
        "stochastic_rounding": True,
        "max_group": 1,
    }


def check_directions(folder: Path) -> None:
    """Records, results and weights of a single process, bit for bit."""
    for method in METHODS:
        for dtype in (torch.float32, torch.bfloat16):
            alone, shared = make(dtype), make(dtype)
            one = bz.ZO(alone, loss, independent_ranks=True, **options(alone, method))
            many = bz.DistributedZO(shared, loss, **options(shared, method))
            for step in range(4):
                assert one.step(batch(step)).record == many.step(batch(step)).record, (method, dtype, step)
            assert bz.digest(alone) == bz.digest(shared), method
            assert many.estimate(batch(9)).record == one.estimate(batch(9)).record and bz.digest(alone) == bz.digest(
                shared
            )
    # costs move the cut, not the result
    alone, shared = make(), make()
    one = bz.ZO(alone, loss, independent_ranks=True, **options(alone, METHODS[2]))
    many = bz.DistributedZO(shared, loss, costs=(1.0, 50.0), **options(shared, METHODS[2]))
    results = one.step(batch(0)), many.step(batch(0))
    assert results[0].losses == results[1].losses and bz.digest(alone) == bz.digest(shared)
    assert results[1].flops >= results[0].flops > 0


def check_batch(folder: Path) -> None:
    """Rows over ranks, unevenly, one rank with none: the single process to rounding, and one digest on all ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for method in METHODS[:4]:
        alone, shared = make(), make()
        one = bz.ZO(alone, loss, independent_ranks=True, **options(alone, method))
        many = bz.DistributedZO(shared, loss, split="batch", **options(shared, method))
        for step in range(3):
            x, labels = batch(step)
            cuts = [0, *range(3, 3 * ranks - 2, 3), 16] if step else [0] * ranks + [16]
            part = (x[cuts[rank] : cuts[rank + 1]], labels[cuts[rank] : cuts[rank + 1]])
            whole, found = one.step((x, labels)), many.step(part if len(part[0]) else None)
            assert abs(whole.loss - found.loss) < 1e-5
        for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-3), method
        digests = many.ranks.objects(bz.digest(shared))
        assert len(set(digests)) == 1
        # micro-batches: the bits of one process, whichever rank has which part
        alone, shared = make(), make()
        one = bz.ZO(alone, loss, independent_ranks=True, **options(alone, method))
        many = bz.DistributedZO(shared, loss, split="batch", **options(shared, method))
        for step in range(3):
            x, labels = batch(step)
            parts = list(zip(x.split(3), labels.split(3), strict=True))
            own = parts[rank::ranks] if step else [parts, *[None] * ranks][rank]
            assert one.step(parts).record == many.step(own).record, method
        assert bz.digest(alone) == bz.digest(shared), method
    assert (
        refused(lambda: many.step(None), ValueError)
        == "step 3: no rank has a row; expected a batch on one of them at least"
    )


def check_examples(folder: Path) -> None:
    """A direction an example: records and weights of a single process, bit for bit, whichever rank has which rows or leaves."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for method in METHODS:
        for split in ("directions", "batch"):
            alone, shared = make(), make()
            one = bz.ZO(alone, loss, independent_ranks=True, per_example=True, **options(alone, method))
            many = bz.DistributedZO(shared, loss, split=split, per_example=True, **options(shared, method))
            for step in range(3):
                x, labels = batch(step, 7)
                # uneven, and at the first step one rank has all
                parts = list(zip(x.split(2), labels.split(2), strict=True))
                cuts = [0, *range(1, ranks), len(parts)] if step else [0] * ranks + [len(parts)]
                mine: Any = parts[cuts[rank] : cuts[rank + 1]] or None
                if split == "directions":
                    mine = (x, labels) if step == 2 else parts
                whole, found = one.step((x, labels) if split == "directions" and step == 2 else parts), many.step(mine)
                assert whole.record == found.record and whole.losses == found.losses, (method, split, step)
            assert bz.digest(alone) == bz.digest(shared), method

    # losses an example, groups of them, other shares: to rounding, and one digest
    def each(model: nn.Module, given: Any) -> torch.Tensor:
        return F.cross_entropy(model(given[0]), given[1], reduction="none")

    alone, shared = make(), make()
    one = bz.ZO(alone, each, independent_ranks=True, per_example=True, **{**options(alone, METHODS[2]), "max_group": 8})
    many = bz.DistributedZO(
        shared, each, split="batch", per_example=True, **{**options(shared, METHODS[2]), "max_group": 8}
    )
    x, labels = batch(0, 9)
    cuts = [0, *range(2, ranks + 1), 9]
    whole = one.step((x, labels))
    found = many.step((x[cuts[rank] : cuts[rank + 1]], labels[cuts[rank] : cuts[rank + 1]]))
    assert abs(whole.loss - found.loss) < 1e-5
    assert whole.record.blocks[1].directions == found.record.blocks[1].directions
    for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)
    assert len(set(many.ranks.objects(bz.digest(shared)))) == 1
    before = bz.digest(shared)
    text = refused(lambda: many.step(None), ValueError)
    assert text == "step 1: no rank has a row; expected a batch on one of them at least"
    # one rank's rows are wrong
    text = refused(lambda: many.step({"n": 3} if rank == ranks - 1 else (x, labels)), ValueError)
    assert text.startswith(f"rank {ranks - 1}: the batch holds no tensor with a dimension"), text
    text = refused(lambda: many.step((x * (float("nan") if rank == 0 else 1), labels)), ValueError)
    assert text.startswith("rank 0: the loss is nan"), text
    assert bz.digest(shared) == before and many.step_number == 1

    def coupled(model: nn.Module, given: Any) -> torch.Tensor:
        y = model(given[0])
        return ((y - y.mean(0)) ** 2).mean()

    other = make()
    many = bz.DistributedZO(other, coupled, split="batch", per_example=True, **options(other, bz.MeZO()))
    assert "must not see each other" in refused(lambda: many.step((x, labels)), ValueError)
    text = refused(
        lambda: bz.DistributedZO(make(), loss, per_example=rank == 0, independent_ranks=True, method=bz.MeZO()),
        ValueError,
    )
    assert "per_example is False on rank 1, True on rank 0" in text, text


def refused(call: Callable[[], Any], kind: type[Exception]) -> str:
    try:
        call()
    except kind as error:
        assert type(error) is kind, error
        return str(error)
    raise AssertionError("nothing was refused")


def check_errors(folder: Path) -> None:
    """What fails on one rank is raised by all with the same words; no weight moves, and the run goes on."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    model = make()
    sick: list[str] = []

    def fragile(model: nn.Module, given: Any) -> torch.Tensor:
        if rank == last and sick == ["nan"]:
            return torch.tensor(float("nan"))
        if rank == 0 and sick == ["memory"]:
            raise MemoryError("no room")
        return loss(model, given)

    def rate(step: int) -> float:
        if rank == last and sick == ["rate"]:
            raise ValueError("no rate")
        return 0.1 + 0.1 * (rank == 0 and sick == ["other rate"])

    zo = bz.DistributedZO(model, fragile, **{**options(model, bz.SPSA(4)), "lr": rate})
    before = bz.digest(model)
    for trouble, kind, words in (
        ("nan", ValueError, f"rank {last}: the loss is nan at block 0"),
        ("memory", RuntimeError, "rank 0: MemoryError: no room"),
        ("rate", ValueError, f"rank {last}: no rate"),
        ("other rate", ValueError, "different learning rates or batches"),
        ("batch", ValueError, "different learning rates or batches"),
    ):
        sick[:] = [trouble]
        text = refused(lambda trouble=trouble: zo.step(batch(5 if trouble == "batch" and rank else 0)), kind)  # type: ignore[misc]
        assert words in text and len(set(zo.ranks.objects(text))) == 1, text
        assert bz.digest(model) == before and zo.step_number == 0
    sick.clear()
    zo.step(batch(0))
    assert len(set(zo.ranks.objects(bz.digest(model)))) == 1

    def begin(**changed: Any) -> Callable[[], Any]:
        own = make()
        return lambda: bz.DistributedZO(own, loss, **{**options(own, bz.MeZO()), **changed})

    for call, words in (
        (begin(method="auto"), 'rank 0: method "auto"'),
        (begin(evaluate="in_place"), "in_place"),
        (begin(split="rows"), "split is 'rows'"),
        (begin(costs=[1.0, -1.0]), "costs"),
        (begin(seed=rank), "seed is 1 on rank 1, 0 on rank 0"),
        (begin(moved="rounded" if rank else "auto"), "moved is rounded on rank 1, auto on rank 0"),
        (
            begin(split="batch", evaluate="in_place" if rank else "perturbed"),
            "evaluate is in_place on rank 1, perturbed",
        ),
        (begin(eps=0.0 if rank == last else 1e-3), f"rank {last}: eps is 0.0"),
        (begin(journal=object() if rank else None), "rank 1: rank 0 alone writes"),
    ):
        assert words in refused(call, ValueError)
    other = make()
    with torch.no_grad():
        next(other.parameters()).add_(rank)
    assert "digest of the weights" in refused(lambda: bz.DistributedZO(other, loss), ValueError)
    other = make()
    other.register_buffer("shift", torch.full((), float(rank)))
    assert "digest of the buffers" in refused(lambda: bz.DistributedZO(other, loss), ValueError)
    # ranks that do not know of each other
    text = refused(lambda: bz.ZO(make(), loss), ValueError)
    assert "blockzo.DistributedZO, or independent_ranks=True" in text
    bz.ZO(make(), loss, independent_ranks=True).step(batch(0))

    def smoothed(model: nn.Module, given: Any) -> torch.Tensor:
        x, labels = given
        return F.cross_entropy(model(x), labels, label_smoothing=0.01 if rank == last else 0.0)

    for split in ("directions", "batch"):
        other = make()
        before = bz.digest(other)
        many = bz.DistributedZO(other, smoothed, split=split, **options(other, bz.SPSA(2)))
        given = batch(rank if split == "batch" else 0)
        text = refused(lambda many=many, given=given: many.step(given), ValueError)  # type: ignore[misc]
        assert "the loss of one batch at the same weights" in text and "same loss function on every rank" in text, text
        assert bz.digest(other) == before and many.step_number == 0


def check_journal(folder: Path) -> None:
    """Rank 0 writes; a run that resumes ends as one that was never stopped; where the disk fails no rank moves."""
    rank, path = dist.get_rank(), folder / "run.bz"

    def begin(journal: bz.Journal | None) -> tuple[nn.Module, bz.DistributedZO]:
        model = make()
        return model, bz.DistributedZO(model, loss, journal=journal, **options(model, bz.SPZO(1, 3)))

    base = make()
    layout = bz.Blocks(base, [2]).layout
    journal = bz.Journal.create(path, bz.digest(base), layout) if rank == 0 else None
    _, zo = begin(journal)
    for step in range(3):
        zo.step(batch(step))
    if journal is not None:
        journal.close()
    journal = bz.Journal.resume(path) if rank == 0 else None
    model, zo = begin(journal)
    assert zo.step_number == 3
    zo.step(batch(3))
    alone = copy.deepcopy(base)
    one = bz.ZO(alone, loss, independent_ranks=True, **options(alone, bz.SPZO(1, 3)))
    for step in range(4):
        one.step(batch(step))
    assert bz.digest(model) == bz.digest(alone)
    if journal is not None:
        assert len(journal.records()) == 4
        journal.close()
    # from a checkpoint of all ranks, with the journal cut to it
    journal = bz.Journal.resume(path) if rank == 0 else None
    model = make()
    zo = bz.DistributedZO(model, loss, **options(model, bz.SPZO(1, 3)))
    for step in range(2):
        zo.step(batch(step))
    if journal is not None:
        assert refused(lambda: zo.attach(journal, 2), bz.JournalError).endswith("will do again")
        journal.truncate(2)
    else:
        refused(lambda: zo.attach(None, 2), bz.JournalError)
    zo.attach(journal, 2)
    for step in range(2, 4):
        zo.step(batch(step))
    assert bz.digest(model) == bz.digest(alone)
    if journal is not None:
        assert len(journal.records()) == 4
        journal.close()
    before = bz.digest(model)
    assert refused(lambda: zo.step(batch(4)), bz.JournalError).startswith("rank 0: ")
    assert bz.digest(model) == before and zo.step_number == 4


def check_death(folder: Path) -> None:
    """A rank that dies ends the step of the others with an error, in seconds."""
    model = make()
    zo = bz.DistributedZO(model, loss, **options(model, bz.MeZO()))
    zo.step(batch(0))
    if dist.get_rank() == dist.get_world_size() - 1:
        os._exit(0)
    before = bz.digest(model)
    try:
        zo.step(batch(1))
    except RuntimeError:
        assert bz.digest(model) == before
        # the group is broken: nothing more can be said to it
        os._exit(0)
    raise AssertionError("the step went on without a rank")


def main() -> None:
    rank, ranks, folder, checks = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    for check in checks:
        print(f"check {check}", flush=True)
        globals()[f"check_{check}"](folder)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
