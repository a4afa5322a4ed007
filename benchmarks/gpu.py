"""The GPU kernels against the GPU's own limits: copy bandwidth, cuBLAS, the forwards alone, eager MeZO.

    python benchmarks/gpu.py [--only bits linear step moves choice products replay] [--rounds 9] [--write-choice] [--small]

It runs inside benchmarks/gpu_check.sh, a part a process, or by hand. Part `bits` compares every operation with the CPU, bit for
bit. A part's rows are saved when it is done; one that fails leaves the others'.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import blockzo as bz
from benchmarks import gpu_linear
from benchmarks.gpu_linear import CHOICE, EPS, choice, linear, products
from benchmarks.gpu_timing import timed
from benchmarks.harness import Spread, Table, speedup

GOALS = {"rademacher": 0.92, "gaussian": 0.7}


@dataclass
class Sizes:
    """Of the measurements; `--small` for a rehearsal, where nothing is learnt but that all of it runs."""

    hidden: int = 2048
    layers: int = 24
    words: int = 50272
    replayed: int = 1 << 26
    records: int = 1000
    updates: int = 100
    """Updates between two comparisons of bits."""

    @staticmethod
    def small() -> Sizes:
        return Sizes(256, 2, 512, 1 << 13, 10, 2)


SIZES = Sizes()


def shapes_of_opt() -> dict[str, tuple[int, ...]]:
    """Parameters of OPT-1.3B: 1.3 G weights in about 400 tensors."""
    hidden, layers, words = SIZES.hidden, SIZES.layers, SIZES.words
    found: dict[str, tuple[int, ...]] = {"embed": (words, hidden), "positions": (2050, hidden)}
    for layer in range(layers):
        for name in ("q", "k", "v", "out"):
            found[f"{layer}.{name}.weight"], found[f"{layer}.{name}.bias"] = (hidden, hidden), (hidden,)
        found[f"{layer}.fc1.weight"], found[f"{layer}.fc1.bias"] = (4 * hidden, hidden), (4 * hidden,)
        found[f"{layer}.fc2.weight"], found[f"{layer}.fc2.bias"] = (hidden, 4 * hidden), (hidden,)
        for name in ("norm1", "norm2"):
            found[f"{layer}.{name}.weight"], found[f"{layer}.{name}.bias"] = (hidden,), (hidden,)
    return found


def same_bits(table: Table, rounds: int) -> None:
    """Updates on the GPU and on the CPU, both distributions, all dtypes.

    Raises:
        RuntimeError: bits differ; all cases are named.
    """
    wrong = []
    for distribution in GOALS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            generator = torch.Generator().manual_seed(0)
            sizes = (1, 129, 4096, 70_001)
            here = {str(n): torch.randn(n, generator=generator).to(dtype) for n in sizes}
            there = {name: w.cuda() for name, w in here.items()}
            for params in (here, there):
                for k in range(SIZES.updates):
                    noise = bz.Noise(1000 + k, distribution)
                    bz.update_(
                        params, noise, [EPS, -2 * EPS], [0, 7], decay=1e-3 * (k % 3), stochastic_rounding=k % 2 == 1
                    )
                bz.perturb_(params, bz.Noise(5, distribution), EPS, 3)
                bz.shift_(params, bz.Noise(5, distribution), [(3, -EPS), (4, EPS)])
            if bz.digest(here) != bz.digest(there):
                wrong.append(f"{distribution} {dtype}: the GPU's bits are not the CPU's")
            noise = bz.Noise(5, distribution)
            if not torch.equal(bz.project(here, noise, [0, 1]), bz.project(there, noise, [0, 1])):
                wrong.append(f"project, {distribution} {dtype}: the GPU's sums are not the CPU's")
    if wrong:
        raise RuntimeError("; ".join(wrong))
    print(f"bits after {SIZES.updates} updates: equal on GPU and CPU, 2 distributions x 3 dtypes", flush=True)


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
    params = {"w": torch.zeros(SIZES.replayed, device="cuda")}
    records = [bz.Record(k, 1000 + k, "rademacher", (bz.BlockUpdate((0,), (EPS,)),)) for k in range(SIZES.records)]
    times = timed({"replay_": lambda: bz.replay_(params, records)}, rounds)
    rate = Spread.of([SIZES.replayed * SIZES.records / seconds / 1e12 for seconds in times["replay_"]])
    table.add(
        f"replay_ {SIZES.records} rademacher float32, {SIZES.replayed >> 20} Mi", "weights x directions", rate, "T/s"
    )


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

    hidden = SIZES.hidden
    config = OPTConfig(
        hidden_size=hidden,
        num_hidden_layers=SIZES.layers,
        ffn_dim=4 * hidden,
        num_attention_heads=hidden // 64,
        word_embed_proj_dim=hidden,
        vocab_size=SIZES.words,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = OPTForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.randint(5, SIZES.words, (16, 64), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
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
    times = timed(sides, rounds, waits=True)
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
    "bits": same_bits,
    "linear": linear,
    "step": step,
    "moves": moves,
    "choice": choice,
    "products": products,
    "replay": replay,
}
"""The most important first."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", type=Path, help="where the rows go; benchmarks/results.csv where it is left out")
    parser.add_argument(
        "--write-choice", type=Path, nargs="?", const=CHOICE, help="puts the row of this GPU into the table"
    )
    parser.add_argument("--small", action="store_true", help="small sizes, to see that all of it runs")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU; expected one")
    torch.backends.cuda.matmul.allow_tf32 = False
    if given.small:
        global SIZES
        SIZES, gpu_linear.SIZE = Sizes.small(), 256
    failed = []
    for part in given.only:
        table = Table("gpu", machine=torch.cuda.get_device_name(), **({"path": given.csv} if given.csv else {}))
        try:
            PARTS[part](table, given.rounds, **({"write": given.write_choice} if part == "choice" else {}))
        except Exception:
            # what the others measure is worth as much without it
            traceback.print_exc()
            failed.append(part)
        if table.rows:
            table.save()
        torch.cuda.empty_cache()
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
