"""Parts of gpu.py: the moved linear layer against cuBLAS, its two ways against each other, and the table that chooses one."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import blockzo as bz
from benchmarks.gpu_timing import copies, in_turn, timed
from benchmarks.harness import Table, speedup
from blockzo.ops.backends.gpu import linear_choice
from blockzo.ops.steps import Step

EPS = 1e-3
SIZE = 4096
DEVICE = "cuda"
CHOICE = linear_choice.FILE
LINEAR = {
    ("rademacher", 16): 0.95,
    ("rademacher", 512): 0.75,
    ("rademacher", 8192): 0.9,
    ("gaussian", 16): 0.35,
    ("gaussian", 512): 0.4,
    ("gaussian", 8192): 0.9,
}


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, device=DEVICE, dtype=dtype, generator=generator)


def weights(dtype: torch.dtype = torch.bfloat16) -> Callable[[], torch.Tensor]:
    """One of SIZE x SIZE at each call, more than a cache holds."""
    count = copies(SIZE * SIZE * dtype.itemsize)
    return in_turn([normal(SIZE, SIZE, seed=k, dtype=dtype) * 0.02 for k in range(count)])


def linear(table: Table, rounds: int) -> None:
    weight = weights()
    for (distribution, tokens), goal in LINEAR.items():
        x = normal(2 * tokens, SIZE, seed=100)
        noise = bz.Noise(3, distribution)

        def plain(x: torch.Tensor = x) -> None:
            w = weight()
            for part in x.chunk(2):
                torch.nn.functional.linear(part, w)

        def moved(x: torch.Tensor = x, noise: bz.Noise = noise) -> None:
            bz.ops.perturbed_linear(x, weight(), None, noise, 7, [0, 0], [EPS, -EPS])

        times = timed({"plain": plain, "moved": moved}, rounds)
        case = f"perturbed_linear {distribution} bfloat16 {SIZE} x {SIZE}, 2 x {tokens} tokens"
        table.add(case, "speed of cuBLAS without noise", speedup(times, "moved", "plain"), "x", goal)
    x = normal(8 * 16, SIZE, seed=101)
    noise = bz.Noise(3)
    directions, scales = [0, 0, 1, 1, 2, 2, 3, 3], [EPS, -EPS] * 4

    def eight() -> None:
        w = weight()
        for part in x.chunk(8):
            torch.nn.functional.linear(part, w)

    times = timed(
        {"plain": eight, "moved": lambda: bz.ops.perturbed_linear(x, weight(), None, noise, 7, directions, scales)},
        rounds,
    )
    case = "perturbed_linear rademacher bfloat16, 4 directions, both signs, 16 tokens"
    table.add(case, "speed of 8 calls of cuBLAS", speedup(times, "moved", "plain"), "x", 3.5)


def products(table: Table, rounds: int) -> None:
    """What groups may share (a load of the weight, a direction, the input), K in parts, and approximate Gaussian noise."""
    from blockzo.ops.backends.gpu import kernels as gpu
    from blockzo.ops.backends.gpu import products as gpu_products
    from blockzo.ops.steps import make_step

    weight = weights()
    for distribution in ("rademacher", "gaussian"):
        for count, tokens in ((1, 16), (1, 64), (4, 16)):
            directions = [direction for direction in range(count) for _ in range(2)]
            moved = make_step(bz.Noise(3, distribution), directions, [EPS, -EPS] * count)
            shared = normal(1, tokens, SIZE, seed=102).expand(2 * count, tokens, SIZE)
            own = shared.contiguous()

            def layer(x: torch.Tensor, parts: int | None = None, moved: Step = moved) -> torch.Tensor:
                return gpu_products.products(x, weight(), None, 0, moved, 7, parts)

            def exactly(x: torch.Tensor) -> torch.Tensor:
                os.environ["BLOCKZO_PRODUCT_NOISE"] = "exact"
                try:
                    return layer(x)
                finally:
                    del os.environ["BLOCKZO_PRODUCT_NOISE"]

            def cublas(own: torch.Tensor = own) -> list[torch.Tensor]:
                w = weight()
                return [torch.nn.functional.linear(part, w) for part in own]

            def panels(own: torch.Tensor = own, moved: Step = moved) -> torch.Tensor:
                return gpu.perturbed_linear(own, weight(), None, 0, moved, 7, "panels")

            sides: dict[str, Callable[[], object]] = {
                "cuBLAS": cublas,
                "panels": panels,
                "whole K": partial(layer, own, 1),
                "own input": partial(layer, own),
                "shared input": partial(layer, shared),
            }
            if distribution == "gaussian":
                sides["exact noise"] = partial(exactly, own)
            times = timed(sides, rounds)
            case = f"products {distribution} bfloat16 {SIZE} x {SIZE}, {count} directions, both signs, {tokens} tokens"
            for base in ("cuBLAS", "panels", "whole K"):
                table.add(case, f"own input over {base}", speedup(times, "own input", base), "x")
            for base in ("cuBLAS", "own input"):
                table.add(case, f"shared input over {base}", speedup(times, "shared input", base), "x")
            if distribution == "gaussian":
                table.add(case, "own input over exact noise", speedup(times, "own input", "exact noise"), "x")


def choice(table: Table, rounds: int, write: Path | None = None) -> None:
    """Up to how many tokens products are the faster way, for `linear_choice.json`; two signs, inputs of their own."""
    from blockzo.ops.backends.gpu import kernels as gpu
    from blockzo.ops.steps import make_step

    row: dict[str, object] = {"measured": True}
    for key in linear_choice.KEYS:
        name, distribution = key.split()
        dtype = getattr(torch, name)
        weight = weights(dtype)
        moved = make_step(bz.Noise(3, distribution), [0, 0], [EPS, -EPS])
        row[key] = 0
        for tokens in (16, 32, 64, 128, 256, 512, 1024):
            x = normal(2, tokens, SIZE, seed=103, dtype=dtype)

            def layer(path: str, x: torch.Tensor = x, weight: Any = weight, moved: Step = moved) -> torch.Tensor:
                return gpu.perturbed_linear(x, weight(), None, 0, moved, 7, path)

            times = timed({path: partial(layer, path) for path in ("products", "panels")}, rounds)
            won = speedup(times, "products", "panels")
            table.add(f"perturbed_linear {key} {SIZE} x {SIZE}, 2 x {tokens} tokens", "products over panels", won, "x")
            if won.p50 < 1:
                break
            row[key] = tokens
    print(f"choice for {torch.cuda.get_device_name()}: {row}", flush=True)
    if write is not None:
        linear_choice.write(write, torch.cuda.get_device_name(), row)
