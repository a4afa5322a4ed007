"""The GPU kernels against the GPU's own limits: copy bandwidth, cuBLAS, the forwards alone, eager MeZO.

    python benchmarks/gpu.py [--only moves replay linear products choice step] [--rounds 9] [--write-choice]

It runs inside benchmarks/gpu_check.sh, or by hand.

Before anything is timed every operation is compared with the CPU, bit for bit; a difference stops the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import blockzo as bz
from benchmarks.gpu_linear import CHOICE, EPS, choice, linear, products
from benchmarks.harness import Spread, Table, speedup, timed

GOALS = {"rademacher": 0.92, "gaussian": 0.7}


def shapes_of_opt(hidden: int = 2048, layers: int = 24, words: int = 50272) -> dict[str, tuple[int, ...]]:
    """Parameters of OPT-1.3B: 1.3 G weights in about 400 tensors."""
    found: dict[str, tuple[int, ...]] = {"embed": (words, hidden), "positions": (2050, hidden)}
    for layer in range(layers):
        for name in ("q", "k", "v", "out"):
            found[f"{layer}.{name}.weight"], found[f"{layer}.{name}.bias"] = (hidden, hidden), (hidden,)
        found[f"{layer}.fc1.weight"], found[f"{layer}.fc1.bias"] = (4 * hidden, hidden), (4 * hidden,)
        found[f"{layer}.fc2.weight"], found[f"{layer}.fc2.bias"] = (hidden, 4 * hidden), (hidden,)
        for name in ("norm1", "norm2"):
            found[f"{layer}.{name}.weight"], found[f"{layer}.{name}.bias"] = (hidden,), (hidden,)
    return found


def same_bits(rounds: int = 100) -> None:
    """100 updates on the GPU and on the CPU, both distributions, all dtypes."""
    for distribution in GOALS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            generator = torch.Generator().manual_seed(0)
            sizes = (1, 129, 4096, 70_001)
            here = {str(n): torch.randn(n, generator=generator).to(dtype) for n in sizes}
            there = {name: w.cuda() for name, w in here.items()}
            for params in (here, there):
                for k in range(rounds):
                    noise = bz.Noise(1000 + k, distribution)
                    bz.update_(
                        params, noise, [EPS, -2 * EPS], [0, 7], decay=1e-3 * (k % 3), stochastic_rounding=k % 2 == 1
                    )
                bz.perturb_(params, bz.Noise(5, distribution), EPS, 3)
                bz.shift_(params, bz.Noise(5, distribution), [(3, -EPS), (4, EPS)])
            if bz.digest(here) != bz.digest(there):
                raise RuntimeError(f"{distribution} {dtype}: the GPU's bits are not the CPU's; nothing was timed")
            noise = bz.Noise(5, distribution)
            if not torch.equal(bz.project(here, noise, [0, 1]), bz.project(there, noise, [0, 1])):
                raise RuntimeError(f"project, {distribution} {dtype}: the GPU's sums are not the CPU's")
    print("bits after 100 updates: equal on GPU and CPU, 2 distributions x 3 dtypes", flush=True)


def moves(table: Table, rounds: int) -> None:
    params = {name: torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for name, shape in shapes_of_opt().items()}
    total = sum(w.numel() for w in params.values())
    # a copy reads and writes each byte once, as a move does
    source = torch.zeros(total, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    for distribution, goal in GOALS.items():
        noise = bz.Noise(3, distribution)
        sides: dict[str, Callable[[], object]] = {
            "copy": lambda: target.copy_(source),
            "perturb_": lambda noise=noise: bz.perturb_(params, noise, EPS),  # type: ignore[misc]
            "update_": lambda noise=noise: bz.update_(params, noise, [EPS]),  # type: ignore[misc]
        }
        times = timed(sides, rounds)
        for name in ("perturb_", "update_"):
            case = f"{name} {distribution} bfloat16, {total / 1e9:.2f} G weights in {len(params)}"
            table.add(case, "share of copy bandwidth", speedup(times, name, "copy"), "x", goal)
        rate = Spread.of([4 * total / seconds / 1e12 for seconds in times["copy"]])
        table.add(f"copy of {total / 1e9:.2f} G bfloat16", "bandwidth", rate, "TB/s")


def replay(table: Table, rounds: int) -> None:
    params = {"w": torch.zeros(1 << 26, device="cuda")}
    records = [bz.Record(k, 1000 + k, "rademacher", (bz.BlockUpdate((0,), (EPS,)),)) for k in range(1000)]
    times = timed({"replay_": lambda: bz.replay_(params, records)}, rounds)
    rate = Spread.of([(1 << 26) * 1000 / seconds / 1e12 for seconds in times["replay_"]])
    table.add("replay_ 1000 rademacher float32, 64 Mi", "weights x directions", rate, "T/s")


def eager_step(model: torch.nn.Module, batch: dict[str, Tensor], seed: int) -> None:
    """MeZO as published (Malladi et al. 2023, algorithm 1): the noise is drawn again from the seed, four times."""

    def move(scale: float) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        for w in model.parameters():
            z = torch.empty(w.shape, dtype=w.dtype, device=w.device).normal_(generator=generator)
            w.data.add_(z, alpha=scale)

    with torch.no_grad():
        move(EPS)
        plus = model(**batch).loss.item()
        move(-2 * EPS)
        minus = model(**batch).loss.item()
        move(EPS)
        move(-1e-6 * (plus - minus) / (2 * EPS))


def step(table: Table, rounds: int) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(hidden_size=2048, num_hidden_layers=24, ffn_dim=8192, num_attention_heads=32)
    with torch.device("cuda"):
        model = OPTForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.randint(5, 50000, (16, 64), device="cuda")
    batch = {"input_ids": ids, "labels": ids}
    zo = bz.ZO(model, lambda m, b: m(**b).loss, method=bz.MeZO(), lr=1e-7)

    def forwards() -> None:
        with torch.inference_mode():
            float(model(**batch).loss), float(model(**batch).loss)

    numbers = iter(range(10**6))
    sides: dict[str, Callable[[], object]] = {
        "forwards": forwards,
        "blockzo": lambda: zo.step(batch),
        "eager": lambda: eager_step(model, batch, next(numbers)),
    }
    times = timed(sides, rounds)
    over = Spread.of([a / b for a, b in zip(times["blockzo"], times["forwards"], strict=True)])
    table.add("MeZO step, OPT-1.3B shape bfloat16 16 x 64", "over the two forwards", over, "x", at_most=1.05)
    table.add(
        "MeZO step, OPT-1.3B shape bfloat16 16 x 64", "faster than eager", speedup(times, "blockzo", "eager"), "x", 2.0
    )
    peaks = []
    for run in (forwards, lambda: zo.step(batch)):
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks.append(torch.cuda.max_memory_allocated())
    table.add(
        "MeZO step, OPT-1.3B shape bfloat16 16 x 64",
        "peak memory over inference",
        Spread.of([peaks[1] / peaks[0]]),
        "x",
        at_most=1.01,
    )


PARTS: dict[str, Callable[..., None]] = {
    "moves": moves,
    "replay": replay,
    "linear": linear,
    "products": products,
    "choice": choice,
    "step": step,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", type=Path, help="where the rows go; benchmarks/results.csv where it is left out")
    parser.add_argument(
        "--write-choice", type=Path, nargs="?", const=CHOICE, help="puts the row of this GPU into the table"
    )
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU; expected one")
    torch.backends.cuda.matmul.allow_tf32 = False
    same_bits()
    name = torch.cuda.get_device_name()
    table = Table("gpu", machine=name, **({"path": given.csv} if given.csv else {}))
    for part in given.only:
        PARTS[part](table, given.rounds, **({"write": given.write_choice} if part == "choice" else {}))
        torch.cuda.empty_cache()
    table.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
