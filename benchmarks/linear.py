"""perturbed_linear against torch's F.linear on plain weights, layer by layer of OPT-125M and Llama-134M.

    python benchmarks/linear.py [--only layers bf16 wide moved groups quantized step] [--threads 2] [--rounds 15] [--no-save]

layers     float32, Rademacher and Gaussian, 16 to 1,024 tokens in one group: time over F.linear's.
bf16       bfloat16 weights and x: times faster than F.linear in bfloat16. `--plain-bf16` holds torch and the kernels to AVX2,
           which has no 16-bit dot products.
wide       bfloat16, 8,192 x 3,072: time over F.linear's.
moved      the same with moves in float32 and with moves rounded to bfloat16, 16 to 256 tokens.
groups     4 directions, both signs, 16 tokens each: one call against eight.
quantized  8 and 4 bit bases against F.linear on float32.
step       all linear layers of a model's forward, in order, at 64 and 1,024 tokens.

Each call meets a weight that no call just before it has read, as in a forward pass. The limit is 2 FLOPs for every weight and
token, and every weight read once: the `rate` rows are to be held against F.linear's at 1,024 tokens, which is close to it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Spread, Table, paired, speedup
from blockzo import _native
from blockzo.noise import Noise
from blockzo.ops import panels, perturbed_linear
from blockzo.ops.backends import cpu, reference
from blockzo.ops.quantized import QuantizedWeight, quantize
from blockzo.ops.steps import make_step

OPT = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
LLAMA = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
T = TypeVar("T")
COLD_BYTES = 128 << 20
EPS = 1e-3
NOISE = Noise(1)
WIDE_LIMITS: dict[str, dict[int, float]] = {"rademacher": {16: 1.3, 64: 1.15}, "gaussian": {64: 1.5}}
STEP_LIMITS = {64: 1.2, 1024: 1.05}
PLAIN = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "BLOCKZO_ISA": "avx2",
}


def check() -> None:
    """Raises RuntimeError unless every path agrees with the reference."""
    x, weight, bias = torch.randn(2, 33, 200), torch.randn(70, 200), torch.randn(70)
    step = make_step(NOISE, [3, 3], [0.1, -0.1])
    want = reference.perturbed_linear(x, weight, bias, 7, step, 5)
    for path in panels.PATHS:
        if not torch.allclose(cpu.perturbed_linear(x, weight, bias, 7, step, 5, path), want, atol=1e-3, rtol=1e-4):
            raise RuntimeError(f"{path} differs from the reference: nothing was timed")


def in_turn(held: Sequence[T]) -> Callable[[], T]:
    turn = cycle(held)
    return lambda: next(turn)


def cold(rows: int, width: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Weights of one shape in turn, more of them than a core's own caches hold."""
    number = max(2, COLD_BYTES // (rows * width * dtype.itemsize))
    return in_turn([torch.randn(rows, width).to(dtype) for _ in range(number)])


def slower(times: dict[str, list[float]], side: str, base: str) -> Spread:
    return Spread.of([a / b for a, b in zip(times[side], times[base], strict=True)])


def layers(table: Table, rounds: int) -> None:
    for rows, width in dict.fromkeys(OPT + LLAMA):
        weight = cold(rows, width, torch.float32)
        for tokens in (16, 64, 256, 1024):
            one_layer(table, rounds, weight, tokens)


def one_layer(table: Table, rounds: int, weight: Callable[[], Tensor], tokens: int) -> None:
    rows, width = weight().shape
    x, bias = torch.randn(tokens, width), torch.randn(rows)

    def moved(distribution: str) -> Callable[[], Tensor]:
        noise = Noise(1, distribution)
        return lambda: perturbed_linear(x, weight(), bias, noise, 5, [0], [EPS])

    names = ("rademacher", "gaussian")
    times = paired(
        {"torch": lambda: F.linear(x, weight(), bias)} | {name: moved(name) for name in names}, rounds=rounds
    )
    case = f"{rows} x {width} {tokens} tokens"
    for name in names:
        table.add(case, f"{name} over F.linear", slower(times, name, "torch"), "x")
    for side in ("torch", "rademacher"):
        table.add(
            case, f"rate of {side}", Spread.of([2e-9 * rows * width * tokens / s for s in times[side]]), "GFLOP/s"
        )


def bf16(table: Table, rounds: int) -> None:
    for rows, width in ((768, 768), (3072, 768), (576, 576)):
        weight = cold(rows, width, torch.bfloat16)
        for tokens in (16, 64, 256):
            one_bf16(table, rounds, weight, tokens)


def one_bf16(table: Table, rounds: int, weight: Callable[[], Tensor], tokens: int) -> None:
    rows, width = weight().shape
    x, bias = torch.randn(1, tokens, width).bfloat16(), torch.randn(rows).bfloat16()
    dots = os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2" and panels.multiplies(torch.bfloat16)
    path = panels.choose_path(x, weight(), 0, _native.chosen(), _native.vendor()) if dots else "tiles"
    move = make_step(NOISE, [0], [EPS])
    times = paired(
        {
            "torch": lambda: F.linear(x[0], weight(), bias),
            "moved": lambda: cpu.perturbed_linear(x, weight(), bias, 0, move, 5, path),
        },
        rounds=rounds,
    )
    case = f"bfloat16 {'with' if dots else 'no'} 16-bit dot {rows} x {width} {tokens} tokens"
    faster = speedup(times, "moved", "torch")
    table.add(case, f"times faster than F.linear, {path}", faster, "x", None if dots else 3.0)


def wide(table: Table, rounds: int) -> None:
    weight = cold(8192, 3072, torch.bfloat16)
    for tokens in (16, 64, 256, 1024):
        x = torch.randn(tokens, 3072).bfloat16()

        def moved(distribution: str, x: Tensor = x) -> Callable[[], Tensor]:
            noise = Noise(1, distribution)
            return lambda: perturbed_linear(x, weight(), None, noise, 5, [0], [EPS])

        sides = {"torch": lambda x=x: F.linear(x, weight())} | {name: moved(name) for name in WIDE_LIMITS}
        times = paired(sides, rounds=rounds)
        for name, limits in WIDE_LIMITS.items():
            case = f"bfloat16 8192 x 3072 {tokens} tokens {_native.chosen()} {name}"
            table.add(case, "over F.linear", slower(times, name, "torch"), "x", at_most=limits.get(tokens))


def moved(table: Table, rounds: int) -> None:
    weight = cold(8192, 3072, torch.bfloat16)
    for tokens in (16, 64, 256):
        x = torch.randn(tokens, 3072).bfloat16()

        def product(distribution: str, way: str, x: Tensor = x) -> Callable[[], Tensor]:
            noise = Noise(1, distribution)
            return lambda: perturbed_linear(x, weight(), None, noise, 5, [0], [EPS], moved=way)

        ways = [(name, way) for name in WIDE_LIMITS for way in ("float32", "rounded")]
        sides: dict[str, Callable[[], Tensor]] = {"torch": lambda x=x: F.linear(x, weight())}
        times = paired(sides | {f"{name} {way}": product(name, way) for name, way in ways}, rounds=rounds)
        for name, way in ways:
            case = f"bfloat16 8192 x 3072 {tokens} tokens {_native.chosen()} {name}, moved {way}"
            table.add(case, "over F.linear", slower(times, f"{name} {way}", "torch"), "x")


def groups(table: Table, rounds: int) -> None:
    for rows, width in ((768, 768), (3072, 768), (768, 3072), (576, 576)):
        one_grouped(table, rounds, cold(rows, width, torch.float32))


def one_grouped(table: Table, rounds: int, weight: Callable[[], Tensor]) -> None:
    directions, scales = [0, 0, 1, 1, 2, 2, 3, 3], [EPS, -EPS] * 4
    rows, width = weight().shape
    x, bias = torch.randn(8, 16, width), torch.randn(rows)

    def one_by_one() -> None:
        for k in range(8):
            perturbed_linear(x[k], weight(), bias, NOISE, 5, directions[k : k + 1], scales[k : k + 1])

    def plain() -> None:
        for k in range(8):
            F.linear(x[k], weight(), bias)

    times = paired(
        {
            "together": lambda: perturbed_linear(x, weight(), bias, NOISE, 5, directions, scales),
            "one by one": one_by_one,
            "plain": plain,
        },
        rounds=rounds,
    )
    case = f"8 groups of 16 tokens {rows} x {width}"
    table.add(case, "times faster than eight calls", speedup(times, "together", "one by one"), "x", 1.8)
    table.add(case, "times faster than eight F.linear", speedup(times, "together", "plain"), "x")


def quantized(table: Table, rounds: int) -> None:
    for rows, width in ((768, 768), (3072, 768)):
        weight = cold(rows, width, torch.float32)
        for bits in (8, 4):
            base = in_turn([quantize(weight(), bits) for _ in range(24)])
            for tokens in (16, 64, 256):
                one_quantized(table, rounds, weight, base, tokens)


def one_quantized(
    table: Table, rounds: int, weight: Callable[[], Tensor], base: Callable[[], QuantizedWeight], tokens: int
) -> None:
    rows, width = weight().shape
    x, bias = torch.randn(tokens, width), torch.randn(rows)
    times = paired(
        {
            "torch": lambda: F.linear(x, weight(), bias),
            "still": lambda: perturbed_linear(x, base(), bias, NOISE, 5, [0], [0.0]),
            "moved": lambda: perturbed_linear(x, base(), bias, NOISE, 5, [0], [EPS]),
        },
        rounds=rounds,
    )
    case = f"int{base().bits} {rows} x {width} {tokens} tokens"
    table.add(case, "over F.linear float32", slower(times, "still", "torch"), "x")
    table.add(case, "moved over F.linear float32", slower(times, "moved", "torch"), "x")


def step(table: Table, rounds: int) -> None:
    for name, shapes, depth in (("OPT-125M", OPT, 12), ("Llama-134M", LLAMA, 30)):
        weights = [torch.randn(rows, width) for _ in range(depth) for rows, width in shapes]
        for tokens, limit in STEP_LIMITS.items():
            times = paired(forwards(weights, tokens), rounds=rounds, warmup=1)
            case = f"linear layers of {name} {tokens} tokens"
            table.add(case, "over F.linear", slower(times, "moved", "plain"), "x", at_most=limit)


def forwards(weights: list[Tensor], tokens: int) -> dict[str, Callable[[], None]]:
    inputs = {width: torch.randn(tokens, width) for width in {w.shape[1] for w in weights}}

    def plain() -> None:
        for w in weights:
            F.linear(inputs[w.shape[1]], w)

    def moved() -> None:
        for number, w in enumerate(weights):
            perturbed_linear(inputs[w.shape[1]], w, None, NOISE, number, [0], [EPS])

    return {"plain": plain, "moved": moved}


PARTS = {
    "layers": layers,
    "bf16": bf16,
    "wide": wide,
    "moved": moved,
    "groups": groups,
    "quantized": quantized,
    "step": step,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--plain-bf16", action="store_true", help="the bf16 part as on a CPU of AVX2 alone")
    parser.add_argument("--no-save", action="store_true", help="print, and leave results.csv as it is")
    options = parser.parse_args()
    if options.plain_bf16:
        if any(os.environ.get(name) != value for name, value in PLAIN.items()):
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PLAIN})
        options.only = ["bf16"]
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    check()
    best = _native.chosen() == _native.available()[0]
    table = Table("linear" if best else f"linear {_native.chosen()}")
    print(f"{table.machine}; {options.threads} threads, {_native.chosen()}")
    for name in options.only:
        PARTS[name](table, options.rounds)
    if not options.no_save:
        table.save()


if __name__ == "__main__":
    main()
