"""What a step does to the weights and asks of torch: reads and writes of them, FLOPs, tensors allocated, operations dispatched;
and launches of the path for GPUs, which needs none.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import blockzo as bz
from benchmarks.host import without_launches
from blockzo.ops.backends.gpu import linear_choice, products, runs, tables

WIDTH, LAYERS, TOKENS, VOCABULARY = 256, 4, 6, 128
METHODS = {
    "MeZO": bz.MeZO(),
    "SPSA 4": bz.SPSA(4),
    "one-sided 4": bz.OneSided(4),
    "FZOO 4": bz.FZOO(4),
    "SPZO 1 x 4": bz.SPZO(1, 4),
}


def section() -> str:
    return "steps torch " + ".".join(torch.__version__.split(".")[:2])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.tanh(self.up(self.norm(hidden)))


class Model(nn.Module):
    """Small, and its matrices large enough to be moved one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Residual() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        found: Tensor = self.head(hidden)
        return found


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())


def made(dtype: torch.dtype = torch.float32) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model().to(dtype).eval(), torch.arange(2 * TOKENS).view(2, TOKENS)


class Touched(TorchDispatchMode):
    """Bytes of weights that operations read and write; what only makes a view of them touches nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.held = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.total = sum(p.numel() * p.element_size() for p in model.parameters())
        self.read = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        named = dict(zip([argument.name for argument in schema.arguments], args, strict=False)) | (kwargs or {})
        if not any(found.alias_info is not None and not found.alias_info.is_write for found in schema.returns):
            for argument in schema.arguments:
                written = argument.alias_info is not None and argument.alias_info.is_write
                for tensor in tree_leaves(named.get(argument.name)):
                    if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in self.held:
                        size = tensor.numel() * tensor.element_size()
                        self.read += size
                        self.written += size * written
        return func(*args, **(kwargs or {}))


def asked(run: Callable[[], object]) -> dict[str, float]:
    """Allocations of tensors and operations dispatched, nested ones too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            run()
    allocations = size = dispatched = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]" and event.nbytes() > 0:
            allocations, size = allocations + 1, size + event.nbytes()
        dispatched += event.name().startswith(("aten::", "blockzo::"))
    return {"dispatches": dispatched, "allocations": allocations, "allocated bytes": size}


def counts(model: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    # what is built once and kept is not of a step
    run()
    with Touched(model) as touched:
        run()
    passes = {
        "weight reads": round(touched.read / touched.total, 3),
        "weight writes": round(touched.written / touched.total, 3),
    }
    return {**passes, **asked(run)}


def steps() -> Iterator[tuple[str, dict[str, float]]]:
    for name, method in METHODS.items():
        for form, options in (
            ("", {"max_group": 1}),
            (", in groups", {"max_group": 8}),
            (", in place", {"evaluate": "in_place"}),
        ):
            if form == ", in place" and name != "MeZO":
                continue
            model, ids = made()
            zo = bz.ZO(model, loss, method, lr=1e-4, **options)  # type: ignore[arg-type]
            flops = zo.step(ids).flops
            yield f"step of {name}{form}", {"FLOPs": flops, **counts(model, partial(zo.step, ids))}


def moves() -> dict[str, Callable[[nn.Module], object]]:
    noise, many = bz.Noise(1), [1e-4] * 16
    records = [bz.Record(k, 10 + k, "rademacher", (bz.BlockUpdate((0,), (1e-4,)),)) for k in range(16)]
    return {
        "perturb_": lambda model: bz.perturb_(model, noise, 1e-3),
        "shift_": lambda model: bz.shift_(model, noise, [(0, 1e-3), (1, -1e-3)]),
        "update_ of 16 directions": lambda model: bz.update_(model, noise, many),
        "update_ of 16 seeds": lambda model: bz.update_(model, [bz.Noise(k) for k in range(16)], many),
        "replay_ of 16 records": lambda model: bz.replay_(model, records),
    }


def operations() -> Iterator[tuple[str, dict[str, float]]]:
    runs = {
        **moves(),
        "project on 4 directions": lambda model: bz.project(model, bz.Noise(1), range(4)),
        "digest": bz.digest,
    }
    for name, run in runs.items():
        model, _ = made()
        yield name, counts(model, partial(run, model))


def launches() -> Iterator[tuple[str, dict[str, float]]]:
    """Of every kernel, the programs of all, and what the host does for a forward."""
    noted: Counter[str] = Counter()

    def note(name: str, grid: Sequence[int]) -> None:
        noted[f"launches of {name}"] += 1
        noted["programs"] += grid[0]

    def fresh(run: Callable[[], object]) -> None:
        # tables are kept by addresses of tensors, which come back or do not
        for module in (tables, runs, products):
            for kept in vars(module).values():
                if hasattr(kept, "cache_clear"):
                    kept.cache_clear()
        run()

    def launched(run: Callable[[], object]) -> dict[str, float]:
        run()
        noted.clear()
        run()
        return dict(sorted(noted.items()))

    model, ids = made(torch.bfloat16)

    def forward(directions: Sequence[int], scales: Sequence[float]) -> None:
        bz.perturbed_losses(model, bz.Noise(3), directions, scales, lambda: loss(model, ids), max_group=len(scales))

    forwards = {
        "one direction": partial(forward, [0], [1e-3]),
        "both signs": partial(forward, [0, 0], [1e-3, -1e-3]),
        "4 directions, both signs": partial(forward, [0, 0, 1, 1, 2, 2, 3, 3], [1e-3, -1e-3] * 4),
    }
    with without_launches(note), torch.no_grad():
        for name, run in forwards.items():
            with mock.patch.object(linear_choice, "choose", lambda *call: "panels"):
                # what torch's product of 16-bit numbers asks for depends on the CPU
                yield f"GPU path, forward by panels, {name}", launched(run)
            with mock.patch.object(linear_choice, "choose", lambda *call: "products"):
                yield f"GPU path, forward by products, {name}", {**launched(run), **asked(partial(fresh, run))}
        for name, move in moves().items():
            yield f"GPU path, {name}", launched(partial(move, model))


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def counted() -> dict[str, dict[str, float]]:
    with one_thread(), warnings.catch_warnings():
        # a model this small learns nothing
        warnings.simplefilter("ignore")
        return dict([*steps(), *operations(), *launches()])
