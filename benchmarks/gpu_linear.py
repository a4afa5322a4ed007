"""Parts of gpu.py: the moved linear layer against cuBLAS, its two ways against each other, and the table that chooses one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import blockzo as bz
from benchmarks.harness import Table, speedup, timed
from blockzo.ops.backends.gpu import linear_choice

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


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def linear(table: Table, rounds: int) -> None:
    weight = normal(SIZE, SIZE) * 0.02
    for (distribution, tokens), goal in LINEAR.items():
        x = normal(2 * tokens, SIZE)
        noise = bz.Noise(3, distribution)
        sides: dict[str, Callable[[], object]] = {
            "plain": lambda x=x: [torch.nn.functional.linear(part, weight) for part in x.chunk(2)],  # type: ignore[misc]
            "moved": lambda x=x, noise=noise: bz.ops.perturbed_linear(x, weight, None, noise, 7, [0, 0], [EPS, -EPS]),  # type: ignore[misc]
        }
        times = timed(sides, rounds)
        case = f"perturbed_linear {distribution} bfloat16 {SIZE} x {SIZE}, 2 x {tokens} tokens"
        table.add(case, "speed of cuBLAS without noise", speedup(times, "moved", "plain"), "x", goal)
    x = normal(8 * 16, SIZE)
    noise = bz.Noise(3)
    directions, scales = [0, 0, 1, 1, 2, 2, 3, 3], [EPS, -EPS] * 4
    times = timed(
        {
            "plain": lambda: [torch.nn.functional.linear(part, weight) for part in x.chunk(8)],
            "moved": lambda: bz.ops.perturbed_linear(x, weight, None, noise, 7, directions, scales),
        },
        rounds,
    )
    case = "perturbed_linear rademacher bfloat16, 4 directions, both signs, 16 tokens"
    table.add(case, "speed of 8 calls of cuBLAS", speedup(times, "moved", "plain"), "x", 3.5)


def products(table: Table, rounds: int) -> None:
    """What groups may share (a load of the weight, a direction, the input), and K in parts."""
    from blockzo.ops.backends.gpu import kernels as gpu
    from blockzo.ops.backends.gpu import products as gpu_products
    from blockzo.ops.steps import make_step

    weight = normal(SIZE, SIZE) * 0.02
    for distribution in ("rademacher", "gaussian"):
        for count, tokens in ((1, 16), (1, 64), (4, 16)):
            directions = [direction for direction in range(count) for _ in range(2)]
            moved = make_step(bz.Noise(3, distribution), directions, [EPS, -EPS] * count)
            shared = normal(1, tokens, SIZE).expand(2 * count, tokens, SIZE)
            own = shared.contiguous()
            layer = partial(gpu_products.products, weight=weight, bias=None, start=0, step=moved, stream=7)
            other = partial(gpu.perturbed_linear, own, weight, None, 0, moved, 7)
            sides: dict[str, Callable[[], object]] = {
                "cuBLAS": lambda own=own: [torch.nn.functional.linear(part, weight) for part in own],  # type: ignore[misc]
                "panels": partial(other, "panels"),
                "whole K": partial(layer, own, parts=1),
                "own input": partial(layer, own),
                "shared input": partial(layer, shared),
            }
            times = timed(sides, rounds)
            case = f"products {distribution} bfloat16 {SIZE} x {SIZE}, {count} directions, both signs, {tokens} tokens"
            for base in ("cuBLAS", "panels", "whole K"):
                table.add(case, f"own input over {base}", speedup(times, "own input", base), "x")
            for base in ("cuBLAS", "own input"):
                table.add(case, f"shared input over {base}", speedup(times, "shared input", base), "x")


def choice(table: Table, rounds: int, write: Path | None = None) -> None:
    """Up to how many tokens products are the faster way, for `linear_choice.json`; two signs, inputs of their own."""
    from blockzo.ops.backends.gpu import kernels as gpu
    from blockzo.ops.steps import make_step

    row: dict[str, object] = {"measured": True}
    for key in linear_choice.KEYS:
        name, distribution = key.split()
        dtype = getattr(torch, name)
        weight = normal(SIZE, SIZE, dtype=dtype) * 0.02
        moved = make_step(bz.Noise(3, distribution), [0, 0], [EPS, -EPS])
        row[key] = 0
        for tokens in (16, 32, 64, 128, 256, 512, 1024):
            x = normal(2, tokens, SIZE, dtype=dtype)
            layer = partial(gpu.perturbed_linear, x, weight, None, 0, moved, 7)
            times = timed({path: partial(layer, path) for path in ("products", "panels")}, rounds)
            won = speedup(times, "products", "panels")
            table.add(f"perturbed_linear {key} {SIZE} x {SIZE}, 2 x {tokens} tokens", "products over panels", won, "x")
            if won.p50 < 1:
                break
            row[key] = tokens
    print(f"choice for {torch.cuda.get_device_name()}: {row}", flush=True)
    if write is not None:
        linear_choice.write(write, torch.cuda.get_device_name(), row)
