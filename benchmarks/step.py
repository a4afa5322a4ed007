"""A whole ZO step on an OPT of 125M parameters (random weights) against the plain forwards it needs.

    python benchmarks/step.py [--only mezo narrow spzo memory] [--rounds 15] [--no-save]

mezo    batch 8 x 32 tokens, float32: the share of a step that is not two plain forwards, perturbed and in place.
narrow  the same model and batch in bfloat16: time of a step over two plain forwards.
spzo    SPZO coupled, split in half, inner 4, against n-SPSA with as many late directions: FLOPs as counted, and wall time.
memory  peak RSS of a step over that of plain inference, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from benchmarks.harness import Spread, Table, paired

LR, EPS = 1e-7, 1e-3


def opt_125m() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig()).eval()


def batch(rows: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(5, 50_000, (rows, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def last_token_loss(model: nn.Module, data: dict[str, Tensor]) -> Tensor:
    """Two label words at the last position, as fine-tuning on a task does: the head costs next to nothing."""
    hidden = model.model(input_ids=data["input_ids"], use_cache=False).last_hidden_state[:, -1]
    labels = data["labels"][:, 0] % 2
    return F.cross_entropy(F.linear(hidden, model.lm_head.weight[torch.tensor([100, 200])]), labels)


def times_of_steps(model: nn.Module, data: dict[str, Tensor], rounds: int) -> dict[str, list[float]]:
    """Of two plain forwards, and of steps that take two losses."""
    perturbed = bz.ZO(model, lr=LR, eps=EPS)
    in_place = bz.ZO(model, lr=LR, eps=EPS, evaluate="in_place")

    def two_forwards() -> None:
        with torch.no_grad():
            float(model(**data).loss)
            float(model(**data).loss)

    return paired(
        {
            "forwards": two_forwards,
            "perturbed": lambda: perturbed.step(data),
            "in place": lambda: in_place.step(data),
        },
        rounds=rounds,
    )


def mezo(table: Table, rounds: int) -> None:
    times = times_of_steps(opt_125m(), batch(8, 32), rounds)
    for side, target in (("perturbed", 0.2), ("in place", 0.1)):
        shares = [1 - plain / step for plain, step in zip(times["forwards"], times[side], strict=True)]
        table.add(f"MeZO step {side}", "share beyond two forwards", Spread.of(shares), "", at_most=target)


def narrow(table: Table, rounds: int) -> None:
    times = times_of_steps(opt_125m().bfloat16(), batch(8, 32), rounds)
    for side in ("perturbed", "in place"):
        ratios = [step / plain for plain, step in zip(times["forwards"], times[side], strict=True)]
        limit = 1.1 if side == "perturbed" else None
        table.add(f"MeZO step bfloat16 {side}", "over two forwards", Spread.of(ratios), "x", at_most=limit)


def spzo(table: Table, rounds: int) -> None:
    model, data = opt_125m(), batch(8, 32)
    blocks = bz.Blocks(model, 0.5)
    split = bz.ZO(model, last_token_loss, bz.SPZO(1, 4), blocks, lr=LR, eps=EPS)
    plain = bz.ZO(model, last_token_loss, bz.SPSA(4), bz.Blocks(model, []), lr=LR, eps=EPS)
    cost = bz.cost(blocks, bz.SPZO(1, 4), batch=data, loss_fn=last_token_loss)
    alpha = cost.block_flops[0] / sum(cost.block_flops)
    formula = 4 / (alpha + 4 * (1 - alpha))
    counted = plain.step(data).flops / split.step(data).flops
    times = paired({"spzo": lambda: split.step(data), "spsa": lambda: plain.step(data)}, rounds=rounds, warmup=1)
    wall = Spread.of([b / a for a, b in zip(times["spzo"], times["spsa"], strict=True)])
    table.add("SPZO coupled 1 x 4", "formula: FLOPs saved", Spread.of([formula]), "x")
    table.add("SPZO coupled 1 x 4", "counted: FLOPs saved", Spread.of([counted]), "x", target=0.97 * formula)
    table.add("SPZO coupled 1 x 4", "measured: time saved", wall, "x", target=0.92 * formula)


def peak(kind: str, steps: int = 3) -> int:
    """Peak RSS in KiB of a process that makes so many forwards, and then steps."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", kind, "--steps", str(steps)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_for_peak(kind: str, steps: int) -> None:
    model, data = opt_125m(), batch(8, 32)
    # what building the model took at its worst must not hide what running it takes
    Path("/proc/self/clear_refs").write_text("5")
    with torch.no_grad():
        for _ in range(steps):
            model(**data)
    if kind != "inference":
        zo = bz.ZO(model, lr=LR, eps=EPS, evaluate=kind)
        for _ in range(steps):
            zo.step(data)
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def memory(table: Table, rounds: int) -> None:
    tell_peaks(table, peaks_of(("perturbed", "in_place"), 3))


def peaks_of(kinds: Sequence[str], times: int, steps: int = 3) -> dict[str, list[int]]:
    """Of inference and of these, as often as `times`; no clock is read, so processes run beside each other."""
    with ThreadPoolExecutor(2) as pool:
        peaks = {kind: [pool.submit(peak, kind, steps) for _ in range(times)] for kind in ("inference", *kinds)}
        return {kind: [one.result() for one in many] for kind, many in peaks.items()}


def tell_peaks(table: Table, found: Mapping[str, Sequence[int]]) -> None:
    for kind in list(found)[1:]:
        ratios = [a / b for a, b in zip(found[kind], found["inference"], strict=True)]
        table.add(
            f"MeZO step {kind.replace('_', ' ')}", "peak RSS over inference", Spread.of(ratios), "x", at_most=1.05
        )
        mib = [kib / 1024 for kib in found[kind]]
        table.add(f"MeZO step {kind.replace('_', ' ')}", "peak RSS", Spread.of(mib), "MiB")


PARTS = {"mezo": mezo, "narrow": narrow, "spzo": spzo, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--peak", choices=["inference", "perturbed", "in_place"], help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        return run_for_peak(given.peak, given.steps)
    table = Table("step")
    for name in given.only:
        PARTS[name](table, given.rounds)
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
